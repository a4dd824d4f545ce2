"""What every training shares: schedules, and snapshots from which a killed run continues to the same bytes."""
