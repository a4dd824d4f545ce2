"""The only package that imports transformers or peft."""
