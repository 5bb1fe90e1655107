"""`python -m lmkit.launch target=slurm +experiment=gpt_small launch.nodes=2 launch.gpus_per_node=8`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Write the job that trains an experiment on a cluster: an sbatch script (target=slurm), a JobSet (target=gke)
or a script of gcloud commands (target=tpu_pod), with all that the command line says. verb=serve writes a server of
init_from instead: an sbatch script or a Deployment with its Service. It is printed; launch.submit=true hands it over.
The mesh is checked against the hosts and devices asked for."""
SERVING = ("init_from", "serve.", "mesh.", "launch.", "run.cpu_devices")  # what a server reads, and this verb for it

if __name__ == "__main__":
    words = [f"launch.{word}" if word.startswith(("target=", "verb=")) else word for word in sys.argv[1:]]
    reads = SERVING if "launch.verb=serve" in words else ()
    sys.exit(run_verb("launch", "lmkit.launch.main:launch", ABOUT, words, reads=reads))
