#!/usr/bin/env bash
# Fresh machine: venv, install, and one federated training run through `flwr run` on the built-in data set.
# More arguments go to `fedrec run`. Exits non-zero when the run failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh
setup_env report

fedrec run --num-nodes 2 -c 'num-server-rounds=20' "$@"
latest=$(ls -d outputs/????-??-??/*/ | sort | tail -n 1)
cat <<TEXT

Next:
  .venv/bin/fedrec recommend --run ${latest%/} --user u001
  .venv/bin/fedrec simulate --num-nodes 8 -c 'model.name="neumf" num-server-rounds=4 evaluate.every=2'
  .venv/bin/fedrec data stats synthetic
TEXT
