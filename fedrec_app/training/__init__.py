"""Local training: what a node does with its users between two messages."""
