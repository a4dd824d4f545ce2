"""Facts: an invented world, and a small Llama that learns it."""
