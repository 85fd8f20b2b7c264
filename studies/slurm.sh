#!/bin/bash
# A hundred nodes of a SLURM cluster on one study: `sbatch studies/slurm.sh`, options of SLURM and the study as you like.
# The storage's URL lies in a file that you alone can read (chmod 600):
#   postgresql+psycopg://USER:PASSWORD@HOST/DB
# A task that SLURM ends (preemption, the time limit) gets SIGTERM a minute before, hands its trial back and exits with
# 143; submitted again, or requeued, it goes on.
#SBATCH --job-name=kdsearch
#SBATCH --array=1-100
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
OPTUNA_STORAGE="$(cat "$HOME/.kdsearch-storage")"
export OPTUNA_STORAGE
exec kdsearch optimize --dataset "${DATASET:-digits}" --name "${NAME:-cluster}" --trials "${TRIALS:-1000}" "$@"
