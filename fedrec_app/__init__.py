"""fedrec: recommender systems trained where the data is, as a Flower app."""

__version__ = "0.1.0"
