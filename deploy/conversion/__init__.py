"""What every export shares: source model, parity, score, description."""
