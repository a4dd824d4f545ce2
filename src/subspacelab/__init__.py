"""subspacelab: the low-rank structure of model weights, vision features and adapters."""
