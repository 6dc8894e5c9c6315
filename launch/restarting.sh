#!/usr/bin/env bash
# Train through crashes: if a process of the run ends, however that happens, the launcher starts all of them again, at
# most three times, and the run continues from its newest whole checkpoint. From the root of the checkout:
#
#     launch/restarting.sh runs/night --num_processes 4 -- --recipe qwen2.5-1.5b
#
# Arguments before -- go to accelerate launch, those after it to launch/train.py. After a power failure or a
# pre-emption, the same command continues the run.
set -euo pipefail

run=${1:?the run folder, such as runs/night}
shift
# Never empty: bash before 4.4, which macOS has, takes an empty array for an unset one.
launcher=(--config_file "${CONFIG_FILE:-accelerate_configs/zero2.yaml}" --max_restarts "${RESTARTS:-3}")
while [[ $# -gt 0 && $1 != -- ]]; do
    launcher+=("$1")
    shift
done
shift || true

exec accelerate launch "${launcher[@]}" launch/train.py --output_dir "$run" --resume auto "$@"
