"""Grounding: rendered scenes, and a small Qwen2.5-VL that draws boxes around words in them."""
