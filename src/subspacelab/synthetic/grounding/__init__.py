"""Grounding: rendered scenes, and a small Qwen2.5-VL that boxes words in them."""
