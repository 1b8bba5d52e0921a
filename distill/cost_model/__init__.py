"""What a training step costs: operations, memory, network, time."""
