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
# One worker runs the tests that start Flower and Ray, the other takes the rest file by file (tests/conftest.py).
exec pytest -n 2 "$@"
