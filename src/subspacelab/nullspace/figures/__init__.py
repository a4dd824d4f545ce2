"""Pictures of room 3."""
