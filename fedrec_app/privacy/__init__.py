"""Differential privacy: what was released, what it costs, and the noise that pays for it."""
