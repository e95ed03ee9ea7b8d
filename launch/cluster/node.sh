#!/bin/bash
# One machine's share of a training job: torchrun here, and the scheduler's signals straight to its ranks.
#
#     NODES=2 RENDEZVOUS=first-machine:29400 GPUS=8 JOB=name launch/cluster/node.sh CONFIG [key.path=value ...]
#
# SIGUSR1 and SIGTERM make the ranks save and end; torchrun would leave them 30 s and then kill them. It exits with
# torchrun's code, which says little: <run.dir>/status.json says why the run ended.
set -euo pipefail
: "${NODES:?machines of the job}" "${GPUS:?ranks on this machine}" "${RENDEZVOUS:?host:port on the first machine}"
: "${JOB:?a name that all machines of this job share}"
python=${PYTHON:-.venv/bin/python}

# Ignored, since a signal to the whole job step also reaches torchrun; the ranks set handlers of their own.
(
    trap '' USR1
    exec "$python" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d \
        --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$JOB" --max-restarts "${RESTARTS:-3}" launch/pretrain.py "$@"
) &
agent=$!

# shellcheck disable=SC2317  # called by the traps
forward() {
    local ranks
    read -r -a ranks <"/proc/$agent/task/$agent/children" || true
    [ "${#ranks[@]}" -eq 0 ] || kill -s "$1" "${ranks[@]}" 2>/dev/null || true
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# A trapped signal ends a wait, not the job.
code=0
while wait "$agent" && code=0 || code=$?; kill -0 "$agent" 2>/dev/null; do :; done
exit "$code"
