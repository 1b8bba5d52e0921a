"""Fine-tunes a model on a task and scores it."""
