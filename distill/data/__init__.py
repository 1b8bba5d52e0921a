"""Order, masks and lengths of training rows, as arithmetic."""
