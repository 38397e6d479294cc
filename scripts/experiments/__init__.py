"""The experiments behind docs/results.md, one a file; `scripts/reproduce.py` runs them."""
