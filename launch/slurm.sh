#!/bin/bash
# Runs a recipe on N nodes under Slurm, one `accelerate launch` a node. From the checkout, with its environment active:
#   sbatch --nodes 2 --gpus-per-node 8 launch/slurm.sh recipes/gsm8k-sft.yaml train.learning_rate=1e-5
# Run `posttrain prepare RECIPE [key=value]` on the login node first: wrong rows are found before the queue, and no GPU waits
# for the tokenizer (POSTTRAIN_CACHE or data.cache_dir must be on a file system that the nodes share).
# ACCELERATE_CONFIG chooses the engine (default launch/ddp.yaml), PROCESSES_PER_NODE the number of processes (default:
# the GPUs per node, otherwise 1), PYTHON the interpreter (default: `python` of the environment sbatch was called in).
# Two minutes before the time limit the run saves a checkpoint and stops; run the same sbatch line to resume.
# #SBATCH lines do not expand variables: pass further options to sbatch instead.
#SBATCH --job-name=posttrain
#SBATCH --ntasks-per-node=1
#SBATCH --output=posttrain-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] launch/slurm.sh RECIPE [key=value ...]" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-$PWD}"

export PYTHON=${PYTHON:-python} ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-launch/ddp.yaml}
[ -f "$ACCELERATE_CONFIG" ] || { echo "error: ACCELERATE_CONFIG=$ACCELERATE_CONFIG: no such file" >&2; exit 2; }
export PROCESSES=$((SLURM_NNODES * ${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}))
# A wrong recipe ends the job here with one sentence; the plan names the stage.
PLAN=$("$PYTHON" -m posttrain.cli check --json --ranks "$PROCESSES" "$@")
STAGE=$("$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["recipe"]["stage"])' <<<"$PLAN")
export STAGE

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# Single quotes on purpose: SLURM_NODEID must be expanded by each node's own shell. Expanded here, on the node that
# runs this script, it would be 0 everywhere and every node would claim to be the first.
# Slurm sends USR1 to every process of the step, and it would end the launcher. The launcher therefore ignores it; the
# training processes inherit that and install a handler of their own.
srun --kill-on-bad-exit=1 bash -c '
  set -euo pipefail
  trap "" USR1
  exec "$PYTHON" -m accelerate.commands.accelerate_cli launch \
    --config_file "$ACCELERATE_CONFIG" --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
    -m "posttrain.$STAGE" "$@"
' posttrain "$@"
