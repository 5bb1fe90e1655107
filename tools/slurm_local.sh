#!/usr/bin/env bash
# A real Slurm of two pretended nodes on this machine, to try what is sent to a cluster. For root in a container.
#
#   tools/slurm_local.sh start DIR     installs Slurm where it is missing (apt-get), starts it; DIR holds its state
#   export SLURM_CONF=DIR/slurm.conf   then sbatch, squeue and scontrol talk to it
#   tools/slurm_local.sh stop DIR      ends what start began
#
# SLURM_LOCAL_PORT (default 17000) is the first of four ports on the loopback.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# = 2 ] || usage
dir=$(realpath -m "$2")
port=${SLURM_LOCAL_PORT:-17000}
export SLURM_CONF=$dir/slurm.conf

install_slurm() {
  command -v slurmctld slurmd munged sbatch >/dev/null && return
  [ "$(id -u)" = 0 ] || { echo "slurm_local: slurm-wlm or munge is missing, and only root can install them" >&2; exit 1; }
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends slurm-wlm munge >/dev/null
}

write_conf() {
  local host=${HOSTNAME:-$(hostname)}
  cat >"$SLURM_CONF" <<CONF
ClusterName=lmkit
SlurmctldHost=${host%%.*}(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
# No cgroups and no pinning: a container has neither.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName=lm[1-2] NodeHostname=${host%%.*} NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=8 RealMemory=4000
PartitionName=cpu Nodes=lm[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  install_slurm
  mkdir -p "$dir/state" "$dir/spool-lm1" "$dir/spool-lm2"
  write_conf
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  # A munged of our own; --force: it is root's, and not in /run.
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" ||
    { cat "$dir/munged.log" >&2; exit 1; }
  slurmctld -c
  slurmd -N lm1
  slurmd -N lm2
  for _ in $(seq 60); do
    if [ "$(sinfo -h -o %t -p cpu 2>/dev/null | sort -u)" = idle ]; then
      echo "Slurm is up: export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  echo "slurm_local: the nodes are not idle after 30 s; see $dir/*.log" >&2
  sinfo >&2 || true
  exit 1
}

stop() {
  [ -d "$dir" ] || { echo "slurm_local: no $dir" >&2; exit 2; }
  scancel --full --user="$(id -un)" 2>/dev/null || true
  local file pid
  for file in "$dir"/slurmd-lm1.pid "$dir"/slurmd-lm2.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    rm -f "$file"
  done
}

case $1 in
  start) start ;;
  stop) stop ;;
  *) usage ;;
esac
