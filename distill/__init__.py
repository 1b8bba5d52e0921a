"""Teacher and token rows to a student."""
