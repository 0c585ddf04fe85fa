#!/usr/bin/env bash
# Set everything up, then run the tests; arguments go to pytest, e.g. bash launch/test.sh -m "not slow".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh dev
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE  # the processes that tests start need not compile the same sources a hundred times
# Two workers, a file of tests each: many tests start processes of their own, and wait for them on one core.
# Long files are first in tests/conftest.py's order, which pytest-xdist would change.
exec pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
