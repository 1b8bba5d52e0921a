"""Masked language models, the student, the fused head and the losses."""
