"""Where metrics go. metrics.jsonl is the record; what else there is mirrors it."""

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.tracker import TrackerConfig
from lmkit.files import write_text
from lmkit.redact import redact_words

ID_FILE = "run_id"


class Tracker(Protocol):
    """What a tracker must do."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def text(self, step: int, name: str, text: str) -> None: ...
    def close(self) -> None: ...


class Jsonl:
    """metrics.jsonl and samples.jsonl: one object a line, on disk as soon as it is logged."""

    def __init__(self, folder: Path):
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._samples = (folder / "samples.jsonl").open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not isinstance(value, int | float):
                raise ConfigError(f"metric {name!r} is {value!r:.40}: log plain numbers, such as float({name})")
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._write(self._metrics, {"step": step, "time": round(time.time(), 3), **finite})

    def text(self, step: int, name: str, text: str) -> None:
        self._write(self._samples, {"step": step, "name": name, "text": text})

    @staticmethod
    def _write(file, row: dict[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()


def run_id(folder: Path) -> str:
    """What a run is called where many are together: random, made once, kept in its directory.

    Directories of different sweeps have the same names, 0, 1, 2.
    """
    file = folder / ID_FILE
    if not file.is_file():
        write_text(file, secrets.token_hex(8) + "\n")
    return file.read_text().strip()


class TensorBoard:
    """Event files in <run>/tensorboard, written without TensorFlow."""

    def __init__(self, folder: Path, project: str, config: dict):
        self._writer = _summary_writer()(str(folder / "tensorboard"))
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```", step)

    def close(self) -> None:
        self._writer.close()


def _summary_writer() -> type:
    """tensorboardX's, without PyTorch, which it would import for two seconds and 200 MB wherever it is installed."""
    hidden = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hidden)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter


class Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, project: str, config: dict):
        import wandb

        # The same id on every resume continues the same curve.
        words, sys.argv = sys.argv, redact_words(sys.argv)  # it keeps the command line
        try:
            self._run = wandb.init(
                project=project, name=folder.name, id=run_id(folder), resume="allow", dir=str(folder), config=config
            )
        finally:
            sys.argv = words

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._run.log({name: wandb.Html(f"<pre>{_escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio: a local dashboard with W&B's interface."""

    def __init__(self, folder: Path, project: str, config: dict):
        import trackio

        self._trackio = trackio
        name = f"{folder.name}-{run_id(folder)}"  # what is resumed is found by its name
        trackio.init(project=project, name=name, config=config, resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackio.log({"step": step, **metrics})

    def text(self, step: int, name: str, text: str) -> None:
        self._trackio.log({"step": step, name: text})

    def close(self) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI says where, default <run>/mlflow.db."""

    def __init__(self, folder: Path, project: str, config: dict):
        import os

        import mlflow

        self._mlflow = mlflow
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(project)
        mark = f"tags.lmkit_run = '{run_id(folder)}'"
        before = mlflow.search_runs(filter_string=mark, max_results=1, output_format="list")
        if before:
            mlflow.start_run(run_id=before[0].info.run_id)
            return
        mlflow.start_run(run_name=folder.name, tags={"lmkit_run": run_id(folder)})
        mlflow.log_dict(config, "config.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("/", "."): value for name, value in metrics.items()}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        self._mlflow.log_text(text, f"{name.replace('/', '_')}_{step}.txt")

    def close(self) -> None:
        self._mlflow.end_run()


KINDS: dict[str, Callable[[Path, str, dict], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


class Trackers:
    """All trackers of a run as one."""

    def __init__(self, members: list[Tracker]):
        self._members = members

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of a step."""
        for member in self._members:
            member.log(step, metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """A text of a step, such as a sample."""
        for member in self._members:
            member.text(step, name, text)

    def close(self) -> None:
        """Flushes all of them."""
        for member in self._members:
            member.close()


def check_trackers(config: TrackerConfig) -> None:
    """Raises ConfigError for an unknown tracker or one whose package is missing, before anything is built."""
    import importlib.util

    for name in config.names:
        _check_name(name)
        package = {"tensorboard": "tensorboardX"}.get(name, name)
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"tracker {name!r} needs a package: pip install 'lmkit[{name}]'")


def _check_name(name: str) -> None:
    if name not in KINDS:
        raise ConfigError(
            f"tracker.names: no tracker {name!r}.{nearest(str(name), KINDS)} There are: {', '.join(KINDS)}"
        )


def build_trackers(config: TrackerConfig, folder: str | Path, plain_config: dict) -> Trackers:
    """The trackers of a configuration, writing into a run directory. Raises ConfigError for others."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"trackers write into {folder}, which is no folder: make it first")
    for name in config.names:
        _check_name(name)
    try:
        others = [KINDS[name](folder, config.project, plain_config) for name in config.names]
    except ImportError as error:
        raise ConfigError(f"tracker.names={config.names}: a package is missing: {error}") from error
    return Trackers([Jsonl(folder), *others])


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl; a last line cut by a crash is left out."""
    rows, path = [], Path(path)
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def forget_after(folder: str | Path, step: int) -> None:
    """Drops rows later than `step`: a resumed run logs those steps again."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = Path(folder) / name
        if path.is_file():
            kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step)
            write_text(path, kept)


def last_figures(folder: str | Path) -> dict[str, float]:
    """The last value of each metric of a run."""
    figures: dict[str, float] = {}
    for row in read_rows(Path(folder) / "metrics.jsonl"):
        figures |= {name: value for name, value in row.items() if "/" in name and value is not None}
    return figures


def _escape(text: str) -> str:
    import html

    return html.escape(text)
