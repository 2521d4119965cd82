#!/bin/bash
# Runs any recipe on N nodes under Slurm, one `accelerate launch` a node.
#   sbatch --nodes 2 --gpus-per-node 8 launch/slurm.sh recipes/gsm8k-sft.yaml train.learning_rate=1e-5
# Choose the engine with ACCELERATE_CONFIG (default launch/ddp.yaml), processes a node with PROCESSES_PER_NODE
# (default: GPUs on the node, else 1). #SBATCH lines do not expand variables: give options to sbatch instead.
#SBATCH --job-name=posttrain
#SBATCH --ntasks-per-node=1
#SBATCH --output=posttrain-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] launch/slurm.sh RECIPE [key=value ...]" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-$PWD}"

export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-launch/ddp.yaml}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# Single quotes on purpose: SLURM_NODEID must be expanded by each node's own shell. Expanded here, on the node that
# runs this script, it would be 0 everywhere and every node would claim to be the first.
srun --kill-on-bad-exit=1 bash -c '
  set -euo pipefail
  processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  exec python -m accelerate.commands.accelerate_cli launch \
    --config_file "$ACCELERATE_CONFIG" \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * processes))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
    -m posttrain.sft "$@"
' posttrain "$@" &
# Slurm signals this script 120 s before the time limit; pass it on, so that the run saves and stops.
trap 'scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null || true' USR1
while kill -0 $! 2>/dev/null; do wait $! && exit 0 || status=$?; done
exit "${status:-1}"
