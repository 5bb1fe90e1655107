#!/bin/bash
# {{title}}
# Asks for a TPU, waits until it is there, runs on all its hosts, and starts again what was broken off. Leave it running
# (in tmux): the run hangs on its ssh. The TPU stays, and costs, until the command that is printed last.
set -uo pipefail
name={{name}}
where=(--quiet)
where+=(--zone={{zone}})
where+=(--project={{project}})
asking=(--accelerator-type={{accelerator}} --runtime-version={{runtime}})
asking+=({{node_options}})
asking+=({{options}})

# What every host runs, as it stands here.
each=$(cat <<'ON_EACH_HOST'
{{script}}
ON_EACH_HOST
)

wait_for_tpu() {
  local state=
  while true; do
    state=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null)
    case $state in
      ACTIVE) return 0 ;;
      '') gcloud compute tpus queued-resources create "$name" "${where[@]}" "${asking[@]}" || return ;;
      FAILED) echo "the request for a TPU failed; see: gcloud compute tpus queued-resources describe $name" >&2; return 1 ;;
      SUSPENDED) gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force ;;  # taken away: ask again
      *) echo "$(date +%T) the TPU is $state" >&2; sleep "${POLL_SEC:-30}" ;;
    esac
  done
}

failures=0
while wait_for_tpu; do
  # A secret of this start, by which the hosts know each other.
  token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  gcloud compute tpus {{ssh}} "$name" "${where[@]}" --worker=all --batch-size=all \
    --command="export LMKIT_JOB_TOKEN=$token"$'\n'"$each"
  status=$?
  case $status in
    {{asked}}) ;;  # asked to stop, and saved: go on
    0 | {{for_good}} | {{interrupted}} | 124) break ;;  # done; a bug or a mistake, which stays one; Ctrl-C; the time is up
    *) [ $((failures += 1)) -le {{max_restarts}} ] || break ;;
  esac
  echo "status $status: starting again" >&2
done
echo "ended with status ${status:-1}; the TPU costs until: gcloud compute tpus queued-resources delete $name --force" >&2
exit "${status:-1}"
