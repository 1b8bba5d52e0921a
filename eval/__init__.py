"""From a student, a teacher or an export to numbers."""
