"""Shared parts of all trainings: schedules, and snapshots from which a killed run continues to the same bytes."""
