#!/usr/bin/env bash
# Everything that CI runs in rotation, a section after the other (about two hours on two cores); each one's result,
# failures counted, is kept in tools/test_all.json as soon as it is there.
#
#   tools/test_all.sh              the sections that have no result at this commit: stopped, it takes up where it was
#   tools/test_all.sh SECTION ...  these sections
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
[ $# -gt 0 ] || mapfile -t missing < <(python3 tools/ci_plan.py missing)
for name in "$@" ${missing[@]+"${missing[@]}"}; do
  began=$SECONDS
  .ci/run all "$name" 2>&1 | tee "$log" || status=$?
  python3 tools/ci_plan.py record "$name" $((SECONDS - began)) "$log"
done
cat tools/test_all.json
exit "$status"
