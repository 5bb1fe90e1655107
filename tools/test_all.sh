#!/usr/bin/env bash
# Everything that CI runs in rotation, in one go (over an hour on two cores); its result, failures counted, is kept in tools/test_all.json.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
.ci/run all 2>&1 | tee "$log" || status=$?
python3 tools/ci_plan.py record "$SECONDS" "$log"
cat tools/test_all.json
exit "$status"
