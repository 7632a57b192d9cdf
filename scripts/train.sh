#!/usr/bin/env bash
# Train on what there is: without GPU or with one by `videonarrator train`, with several by `accelerate launch` of it.
#   bash scripts/train.sh CONFIG [key=value ...]       CONFIG: YAML file, or the name of one in configs/
# accelerate's launcher reads no variables of its own for these; they are passed on as its options of that name:
#   NUM_PROCESSES      on all machines together; default: one for each GPU (2 without GPU: two processes on the CPU)
#   NUM_MACHINES       default 1; else run this on each of them, with MACHINE_RANK=0, 1, ...,
#   MAIN_PROCESS_IP    the address of machine 0, and
#   MAIN_PROCESS_PORT  a free port there (default 29500; on one machine any free one)
# and ACCELERATE is the file in configs/accelerate: ddp (default), fsdp or deepspeed_zero2.
# stdout is the checkpoint's path (on machine 0), the exit code that of the training. Ctrl-C and SIGTERM let the step at
# work end and save its state, for which processes have TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (default an hour).
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bash scripts/train.sh CONFIG [key=value ...]" >&2; exit 2; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PY="$(bash "$root/scripts/setup_env.sh")"
narrator="$(dirname "$PY")/videonarrator"
machines="${NUM_MACHINES:-1}"
processes="${NUM_PROCESSES:-}"
if [ -z "$processes" ]; then
    gpus="$("$PY" -c 'import torch; print(torch.cuda.device_count())')"
    processes=$((machines * (gpus > 1 ? gpus : 1)))
fi
[ "$processes" != 1 ] || exec "$narrator" train --config "$@"

options=(--config_file "$root/configs/accelerate/${ACCELERATE:-ddp}.yaml" --num_processes "$processes"
    --num_machines "$machines" --machine_rank "${MACHINE_RANK:-0}")
if [ "$machines" = 1 ]; then
    options+=(--main_process_port "${MAIN_PROCESS_PORT:-0}")
else
    options+=(--main_process_ip "${MAIN_PROCESS_IP:?the address of machine 0}"
        --main_process_port "${MAIN_PROCESS_PORT:-29500}")
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-3600}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PY" "$root/scripts/launch.py" "${options[@]}" "$narrator" train --config "$@"
