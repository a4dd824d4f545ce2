"""Pictures of trainings and of approximations."""
