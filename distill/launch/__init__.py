"""Pipelines on a Ray cluster: training workers, elasticity, failures."""
