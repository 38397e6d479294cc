#!/usr/bin/env bash
# Fresh machine: venv, development install, linters, type checker, test suite. More arguments go to pytest: ./scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh
setup_env dev

ruff check .
ruff format --check .
pyright
lint-imports
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests that start Flower and Ray share one worker (xdist_group), the rest fill the other.
exec pytest -n 2 --dist loadgroup "$@"
