"""One HTML page of what the pipeline found: interactive, without a network, to be sent or opened from disk."""
