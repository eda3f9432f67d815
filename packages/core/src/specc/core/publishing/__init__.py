"""Checkpoints for others: a plain directory, a signature, a hub."""
