#!/bin/bash
# One capmix command on all nodes of a Slurm job. Validated only with shellcheck; not yet run on a real
# cluster. See docs/clusters.md.
#
#   sbatch examples/cluster/slurm.sh caption /shared/pool --work /shared/W \
#     --source blip2 --model Salesforce/blip2-opt-2.7b
#   sbatch --nodes=2 --gpus-per-node=4 examples/cluster/slurm.sh run /shared/pipeline.yaml
#
# The arguments after the script are capmix's; for `run`, add `engine: {name: ray}` to the file. The
# Python environment must be on a file system that all nodes share, and so must the pool and the work
# directory unless they are URLs. Submit it from the activated environment, or set CAPMIX_VENV to its
# directory.
#
#SBATCH --job-name=capmix
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=capmix-%j.log
#SBATCH --open-mode=append
## A minute or two before the time limit, this script receives SIGTERM, stops capmix and requeues itself.
#SBATCH --signal=B:TERM@60
## After preemption or a node failure, Slurm requeues the job; finished shards are kept. With --no-kill,
## the job would continue without the failed node. But if the first node fails, which runs this script,
## Slurm would keep the others idle until the time limit.
#SBATCH --requeue

set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch slurm.sh COMMAND POOL --work W ... (arguments of capmix)" >&2
  exit 2
fi

# ---- Your site: modules, environment, caches ----
# module load cuda
if [[ -n ${CAPMIX_VENV:-} ]]; then
  # shellcheck disable=SC1091
  source "$CAPMIX_VENV/bin/activate"
fi
# export HF_HOME=/shared/huggingface    # download models once instead of once per node

# ---- Ray: a head on this node, the first one, and a worker on each of the others ----
ulimit -n "$(ulimit -Hn)" # inherited by srun
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# If nodes do not communicate over the network of the default route, set CAPMIX_HEAD_IP.
head_ip=${CAPMIX_HEAD_IP:-$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')}
export head_address=$head_ip:$((20000 + SLURM_JOB_ID % 10000))
# Without a token, anyone who can reach this port can run code as your user.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

steps=()
# shellcheck disable=SC2317,SC2329  # called by the trap
end_steps() {
  trap - EXIT
  if ((${#steps[@]})); then kill "${steps[@]}" 2>/dev/null || true; fi
  wait
}
trap end_steps EXIT

start_ray() { # NODE, options of ray start
  local node=$1
  shift
  # A small object store is enough: capmix does not send images through it.
  srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$cpus" \
    ray start --block --num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory=200000000 \
    --disable-usage-stats "$@" &
  steps+=($!)
}

# Forward SIGTERM to the driver; finished shards are kept.
stopping=
driver=
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  echo "capmix-slurm: stopping" >&2
  stopping=yes
  [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true
}
trap stop TERM INT

alive() {
  python - <<'PYTHON'
import os, ray
ray.init(address=os.environ["head_address"], log_to_driver=False, logging_level="error")
print(sum(node["Alive"] for node in ray.nodes()))
PYTHON
}

start_ray "${nodes[0]}" --head --node-ip-address="$head_ip" --port="${head_address##*:}" \
  --include-dashboard=false
for ((tries = 0; ; tries++)); do
  ray status --address="$head_address" >/dev/null 2>&1 && break
  if ((tries == 60)) || [[ -n $stopping ]]; then
    echo "capmix-slurm: no Ray head at $head_address" >&2
    exit 1
  fi
  sleep 2
done
for node in "${nodes[@]:1}"; do
  start_ray "$node" --address="$head_address"
done
# Continue without nodes that do not join within about five minutes.
for ((tries = 0; tries < 50; tries++)); do
  count=$(alive 2>/dev/null || echo 0)
  if ((count == ${#nodes[@]})) || [[ -n $stopping ]]; then break; fi
  sleep 5
done
echo "capmix-slurm: Ray at $head_address, $count of ${#nodes[@]} nodes, $gpus GPUs each" >&2
[[ -z $stopping ]] || exit 143

# ---- capmix ----
case $1 in
caption | score | export | measure) engine=(--engine ray --address "$head_address") ;;
*) engine=() ;; # run reads the engine from its file
esac
RAY_ADDRESS=$head_address capmix "$@" "${engine[@]}" &
driver=$!
[[ -z $stopping ]] || stop # the signal arrived before the driver started
while true; do
  status=0
  wait "$driver" || status=$?
  kill -0 "$driver" 2>/dev/null || break # still running: a signal interrupted the wait
done

# Requeue the job if its time is nearly up, but not if it was cancelled.
left=$((${SLURM_JOB_END_TIME:-0} - $(date +%s)))
if [[ -n $stopping ]] && ((status != 0 && left > -60 && left < 180)); then
  echo "capmix-slurm: time limit reached, requeued" >&2
  scontrol requeue incomplete "$SLURM_JOB_ID" || true
fi
exit "$status"
