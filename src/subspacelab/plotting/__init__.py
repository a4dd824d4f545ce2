"""Presentation of results: figures, terminal tables, progress bars."""
