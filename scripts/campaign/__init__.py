"""A deployment that is hurt on purpose: what breaks, when, and whether the run is whole afterwards."""
