"""Recommenders: torch models that say what is shared and what is private."""
