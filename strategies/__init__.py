"""Flower strategies for recommenders: they see named arrays and numbers, never models or data."""
