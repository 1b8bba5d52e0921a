"""From a student to something that runs elsewhere."""
