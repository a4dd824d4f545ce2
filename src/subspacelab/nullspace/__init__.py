"""nullspace: adapters in the null space of what a model already knows, built, trained and verified."""
