#!/usr/bin/env bash
# arcdist under Slurm: ZeRO-2 over the GPUs of several nodes. From the root of the checkout, on a login node:
#
#     hf download Qwen/Qwen2.5-1.5B
#     sbatch launch/slurm_multi_node.sh --recipe qwen2.5-1.5b --batch_size 128
#
# Arguments after the script's name go to launch/train.py. The checkout with its .venv, the Hugging Face cache and the
# run folder must be on a file system that all nodes share. Adapt the lines below to the cluster: its partition or
# account, the numbers of nodes, GPUs and cores.
#
#SBATCH --job-name=arcdist
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One task a node: the launcher, which starts a process for each GPU.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Two minutes before the time is up, and if the job is pre-empted: the run ends after its step, with a whole
# checkpoint. Queued again, the job has the same number, and its run continues from there.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
# shellcheck source=/dev/null
source .venv/bin/activate

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_PROCESS_IP=${hosts[0]}
# One port a job, because two jobs may share a node.
export MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 10000))
export NUM_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

# Filled on the login node, because compute nodes often reach no network.
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}
export HF_HUB_OFFLINE=1
# Unset, torchrun would set it to 1 all the same, and say so.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# srun does not take the number of cores over from sbatch by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Where nodes find each other only by a certain network interface:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Quoted, so that each node reads its own SLURM_NODEID. A node that fails takes the others down.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch \
        --config_file accelerate_configs/multi_node_zero2.yaml \
        --num_machines "$SLURM_NNODES" \
        --num_processes "$NUM_PROCESSES" \
        --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_PROCESS_IP" \
        --main_process_port "$MAIN_PROCESS_PORT" \
        launch/train.py "$@"
' launcher --output_dir "runs/arcdist_$SLURM_JOB_ID" --resume auto "$@"
