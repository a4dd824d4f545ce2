"""Pictures of room 4: embedding norms, norm scales over depth, several models side by side."""
