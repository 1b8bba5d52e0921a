"""Ray: connecting to a cluster, its state, and pools of actors."""
