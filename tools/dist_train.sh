#!/usr/bin/env bash
# Trains on several GPUs: dist_train.sh CONFIG GPUS [options of train.py]
# NNODES, NODE_RANK, PORT and MASTER_ADDR come from the environment.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
tools=$(cd "$(dirname "$0")" && pwd)
exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/train.py" "$config" --launcher pytorch "${@:3}"
