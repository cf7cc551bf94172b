"""Faults of a model that was trained elsewhere, found beside the model that its training started from."""
