#!/usr/bin/env bash
# Fresh machine: venv, install, and a deployment on this machine: SuperLink with TLS and authentication, SuperNodes that
# each have their own data, one training run on them. Arguments go to `fedrec deploy loopback`: --nodes 3, --insecure ...
# Ends what it started; exits non-zero when the run failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh
setup_env report

exec fedrec deploy loopback "$@"
