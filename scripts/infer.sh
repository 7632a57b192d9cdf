#!/usr/bin/env bash
# Narrate annotated videos on what there is: without GPU or with one by `videonarrator infer`, with several by `accelerate
# launch` of it, each with its share of the videos.
#   bash scripts/infer.sh --annotations FILE --ids FILE --features FOLDER --checkpoint FOLDER --out FOLDER [...]
# All words are those of `videonarrator infer`; where there are GPUs, --device cuda goes before them.
#   NUM_PROCESSES   default: one for each GPU (1 without GPU; several share the CPU)
# stdout is the summary (one JSON object), the exit code that of `infer`. Killed or interrupted, the same command goes on
# with the videos that are not done, whatever the number of processes was.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PY="$(bash "$root/scripts/setup_env.sh")"
narrator="$(dirname "$PY")/videonarrator"
gpus="$("$PY" -c 'import torch; print(torch.cuda.device_count())')"
processes="${NUM_PROCESSES:-$((gpus > 1 ? gpus : 1))}"
[ "$gpus" = 0 ] || set -- --device cuda "$@"
[ "$processes" != 1 ] || exec "$narrator" infer "$@"

if [ -z "${OMP_NUM_THREADS:-}" ]; then
    cores="$("$PY" -c 'import os; print(os.cpu_count())')"
    export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
fi
exec "$PY" "$root/scripts/launch.py" --config_file "$root/configs/accelerate/ddp.yaml" --num_processes "$processes" \
    --num_machines 1 --machine_rank 0 --main_process_port 0 "$narrator" infer "$@"
