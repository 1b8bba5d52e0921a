"""Measures models: scores, latency, phones, reports."""
