"""What everything stands on: files, places, errors, devices, processes, settings."""
