"""Basics that every other package uses: files, ownership of files, settings, flags, errors, devices, processes."""
