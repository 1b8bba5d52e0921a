"""What a model knows before fine-tuning, and what its checkpoints know while it trains."""
