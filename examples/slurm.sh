#!/bin/bash
# A pre-training run on several machines under Slurm: one torchrun on each, which starts one process for each GPU.
#
#   sbatch examples/slurm.sh IMAGES RUN        (folders that all machines see)
#
# It stops before its time is over, and when a machine fails; then the job is queued again and goes on from the last
# snapshot. RUN is complete when RUN/encoder exists.

#SBATCH --job-name=pretrain
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600

set -u
data=${1:?folder of images} run=${2:?folder of the run}
gpus=${SLURM_GPUS_ON_NODE:-8} attempts=100
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # where all processes meet; this script runs there
export OMP_NUM_THREADS=1

# Ten minutes before the end. torchrun would pass a signal on and kill after 30 seconds, too soon for a large snapshot.
# So it goes to the processes themselves: where one of them hears it, all save after the step and leave.
stop() {
  pkill -TERM -u "$(id -u)" -f -- '-u -m hiermim_zoo\.pretrain '
}
trap stop USR1

srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  -m hiermim_zoo.pretrain "$data" --model hiera_huge --batch-size 4096 --fsdp --amp bf16 --compile --workers 10 \
  -o "$run" --save-steps 500 --resume auto &
job=$!
wait "$job" || wait "$job" # the trap ends the first one
code=$?

[ "$code" = 0 ] && exit 0
[ "${SLURM_RESTART_COUNT:-0}" -lt "$attempts" ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
