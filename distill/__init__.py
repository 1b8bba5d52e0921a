"""From teacher and token rows to a student."""
