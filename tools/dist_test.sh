#!/usr/bin/env bash
# Tests on several GPUs: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# NNODES, NODE_RANK, PORT and MASTER_ADDR come from the environment.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
tools=$(cd "$(dirname "$0")" && pwd)
exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
