#!/bin/bash
# One search on all GPUs of a Slurm allocation. Options of run_search.py launch follow the script's name:
#
#     sbatch docs/deploy/slurm.sh --model deit_small_patch16_224 --pretrained --data-dir /shared/imagenet \
#         --target flops=50% --trials 2000 --output /shared/runs/deit-small
#
# Submit it in the folder of run_search.py. All nodes must see this folder, the images and --output. Five minutes before the time
# limit the search begins no further trial. The job is queued again, and continues the run in --output.
#SBATCH --job-name=search
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

PORT=${PORT:-6379}     # of Ray; another one where jobs share nodes
JOIN=${JOIN:-300}      # seconds for all nodes to join
GRACE=${GRACE:-200}    # seconds for trials that run to finish, of the 300 above
PYTHON=${PYTHON:-python}

# Ray listens on all interfaces and requires this token. srun passes the environment on, so no file holds it.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
common=(--disable-usage-stats --object-store-memory=134217728 --block) # what passes through the object store are events

on() { # a Ray process on one node; its output goes to a file
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start "$@" "${common[@]}" &> "ray-$SLURM_JOB_ID-$node.log" &
    steps+=($!)
}

steps=()
trap 'kill "${steps[@]}" 2> /dev/null || true' EXIT
on "$head" --head --node-ip-address="$head" --port="$PORT" --include-dashboard=false
sleep 5
for node in "${nodes[@]:1}"; do
    on "$node" --address="$head:$PORT"
done

joined() { ray status --address="$head:$PORT" 2> /dev/null | grep -c '^ *1 node_' || true; }
end=$((SECONDS + JOIN))
until [ "$(joined)" -ge "${#nodes[@]}" ]; do
    if [ "$SECONDS" -ge "$end" ]; then
        echo "after $JOIN s $(joined) of ${#nodes[@]} nodes have joined: see ray-$SLURM_JOB_ID-*.log" >&2
        exit 1
    fi
    sleep 2
done

stopped=
search=
# shellcheck disable=SC2317  # the trap calls it
stop() { # finish the trials that run, or stop at once after the grace; what has finished is kept in any case
    stopped=1
    [ -n "$search" ] || return 0
    kill -INT "$search" 2> /dev/null || true
    (sleep "$GRACE" && kill -TERM "$search" 2> /dev/null) &
    steps+=($!)
}
trap stop TERM
"$PYTHON" run_search.py launch --ray-address "$head:$PORT" "$@" &
search=$!
status=0
wait "$search" || status=$?
while kill -0 "$search" 2> /dev/null; do # a signal ends `wait` early
    status=0
    wait "$search" || status=$?
done

if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
