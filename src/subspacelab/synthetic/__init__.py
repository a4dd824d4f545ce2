"""The embedded study: small real checkpoints and pictures, made here, so that a fresh machine needs no hub."""
