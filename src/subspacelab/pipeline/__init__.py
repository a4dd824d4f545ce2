"""The pipeline: params.yaml, stages, and DVC's experiments (sweeps, searches, links to runs, metric checks)."""
