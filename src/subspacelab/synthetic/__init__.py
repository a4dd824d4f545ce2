"""The synthetic study: small real checkpoints and pictures, made here, so that no model hub is needed."""
