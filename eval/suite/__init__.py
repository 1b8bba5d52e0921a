"""All measurements of a teacher and its students as jobs of the queue."""
