"""What a report says first: what was measured, how far to trust it, and what nobody asked for."""
