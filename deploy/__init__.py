"""Models to exports that run elsewhere."""
