"""Metrics, their exporter and log, progress for people, and how numbers read."""
