"""Predicts hours, memory and cost of a run."""
