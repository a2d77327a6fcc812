#!/bin/bash
# Eight workers of one sweep, each on a GPU; a worker that the scheduler stops, or kills, is one less, and nothing else:
#     sbatch examples/slurm.sh examples/sweeps/omniglot.yaml data.root=FOLDER backbone.weights=FILE
# The folder of the runs, runs/omniglot, is where sbatch was started: on a disk that all nodes see.
#SBATCH --job-name=lorica-sweep
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" GOMP_SPINCOUNT=0
exec lorica sweep "$@"
