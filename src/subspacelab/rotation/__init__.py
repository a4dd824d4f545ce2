"""Room 1: how training turns the singular directions of the weights, base -> stage 1 -> stage 2."""
