"""The network's output: predictions, networks as denoisers, and what wraps them."""
