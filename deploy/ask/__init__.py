"""A page that asks models: teacher and student side by side."""
