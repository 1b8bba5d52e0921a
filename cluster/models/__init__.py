"""Model folders and exports: how they are described, opened and run."""
