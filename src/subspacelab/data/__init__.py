"""Pictures, questions, boxes and text: read from disk and turned into tensors."""
