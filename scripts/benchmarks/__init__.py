"""What `scripts/bench.py` measures: a file a command, with the naive baseline written out in `baselines_*`."""
