"""Pictures, questions and boxes: read from disk, turned into tensors."""
