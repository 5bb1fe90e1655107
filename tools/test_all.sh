#!/usr/bin/env bash
# Everything that CI runs in rotation, in one go (over an hour on two cores); its result is kept in tools/test_all.json.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
.ci/run all 2>&1 | tee "$log"
python3 tools/ci_plan.py record "$SECONDS" "$log"
cat tools/test_all.json
