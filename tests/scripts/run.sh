#!/usr/bin/env bash
# Runs the tests of this folder in the clients' environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=build/python/venv/bin/python
if [[ ! -x $python || ! -d build/python/stubs ]]; then
  echo "SKIPPED: no Python environment; scripts/setup_python.sh makes it"
  exit 77
fi
PYTHONPATH=scripts:build/python/stubs exec "$python" -m unittest discover \
  --start-directory tests/scripts --pattern '*_test.py' "$@"
