"""lowrank: vision features X [256, d] factorised as A @ B by small networks, against the SVD optimum."""
