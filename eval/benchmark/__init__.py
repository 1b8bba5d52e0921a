"""Latency, memory and energy of models and exports on CPUs."""
