"""Tasks as data: definitions, examples, layouts, metrics."""
