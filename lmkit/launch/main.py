"""`lmkit.launch`: render, then print or hand over."""

import subprocess
import sys
from pathlib import Path

from lmkit.config.base import UserError
from lmkit.config.checks import check_experiment
from lmkit.config.experiment import Experiment
from lmkit.config.sections.launch import Target, Verb
from lmkit.files import private_files
from lmkit.launch import serving
from lmkit.launch.render import FILES, job_name, render

APPLIED = ["kubectl", "apply", "-f"]  # a server: changed where it is there already
HANDED_TO = {Target.slurm: ["sbatch"], Target.gke: ["kubectl", "create", "-f"], Target.tpu_pod: ["bash"]}


def launch(experiment: Experiment) -> int:
    """Prints the script, or with launch.submit writes it and hands it over. Returns the exit status."""
    settings = experiment.launch
    if settings.verb is Verb.serve:
        script = serving.render_serving(experiment, sys.argv[1:])
        settings.name = settings.name or serving.server_name(experiment)
    else:
        check_experiment(experiment)
        settings.name = settings.name or job_name(experiment)  # the time stands still from here
        script = render(experiment, sys.argv[1:])
    if not settings.submit:
        print(script, end="")
        return 0
    path = Path(settings.out).expanduser() / f"{settings.name}{Path(FILES[settings.target]).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with private_files(0o077):  # the words of the command may hold secrets
        path.unlink(missing_ok=True)
        path.write_text(script, encoding="utf-8")
    applied = settings.verb is Verb.serve and settings.target is Target.gke
    command = [*(APPLIED if applied else HANDED_TO[settings.target]), str(path)]
    print("+", *command, file=sys.stderr, flush=True)
    try:
        return subprocess.run(command).returncode
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed here; {path} is written: hand it over where it is") from error
