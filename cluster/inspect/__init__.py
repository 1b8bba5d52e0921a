"""Shows what an artifact or a run folder holds."""
