"""The training loop and what it needs: teacher, objective, validation, metrics, export."""
