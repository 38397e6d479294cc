"""Attacks on one's own run: what a release and an update give away, measured with the run's own code."""
