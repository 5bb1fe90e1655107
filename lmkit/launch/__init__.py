"""An experiment as a job: scripts for Slurm, Kubernetes and TPU pods."""
