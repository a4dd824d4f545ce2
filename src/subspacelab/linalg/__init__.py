"""Pure linear algebra of weight matrices: tensors in, tensors out."""
