"""Models of transformers and adapters of PEFT; the only package that imports either library."""
