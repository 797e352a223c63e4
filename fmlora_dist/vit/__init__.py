"""The frozen transformer and what may be added to it."""
