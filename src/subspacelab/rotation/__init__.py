"""rotation: how training turns the singular directions of the weights, base -> stage 1 -> stage 2."""
