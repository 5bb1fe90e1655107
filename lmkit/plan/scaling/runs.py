"""Finished runs as points of a law: how large, how long, how good, and what they must have in common."""

import glob
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml
from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.experiment import differing
from lmkit.config.saved import read_model
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.models import build_model
from lmkit.nn.param import param_specs


class FinishedRun(NamedTuple):
    """A finished run."""

    name: str
    non_embedding: int  # parameters without tables of tokens, positions and the head
    total: int  # all parameters
    tokens: int  # seen in training, those seen again too
    epochs: float  # visits of the training text; 0 = not known
    flops: float  # of the training, by lmkit/cost/flops.py
    loss: float  # nats a token, of all held-out text, at the end
    same: dict[str, Any]  # what runs must have in common for their losses to be compared


def read_runs(places: Sequence[str]) -> list[FinishedRun]:
    """Every run that `places` name (directories, globs, files that --json wrote), once each, the smallest first.

    Raises ConfigError where one is missing, unfinished, without a held-out loss, or not to be compared with the rest.
    """
    found: dict[Path, list[FinishedRun]] = {}
    for place in places:
        paths = [Path(one) for one in sorted(glob.glob(str(Path(place).expanduser())))]
        if glob.has_magic(place):  # a folder of runs has other things in it, too
            paths = [path for path in paths if path.suffix.lower() == ".json" or (path / "config.yaml").is_file()]
        if not paths:
            raise ConfigError(f"{place}: there is no such run; name run directories, such as runs/ladder/*")
        for path in paths:
            if path.resolve() not in found:
                found[path.resolve()] = _read_file(path) if path.is_file() else [read_run(path)]
    runs = sorted((run for some in found.values() for run in some), key=lambda run: run.flops)
    for run in runs[1:]:
        if rows := differing(runs[0].same, run.same):
            shown = "; ".join(f"{key} ({str(one)[:16]} and {str(other)[:16]})" for key, one, other in rows[:4])
            raise ConfigError(
                f"the losses of {runs[0].name} and {run.name} cannot be compared: they differ in {shown}; leave one "
                f"of them out"
            )
    return runs


def read_run(folder: Path) -> FinishedRun:
    """The run of a directory. Raises ConfigError where it is not one of a law."""
    receipt, summary = (_read_json(folder, name) for name in ("receipt.json", "summary.json"))
    if summary.get("status") != "finished":
        raise ConfigError(
            f"{folder} is not finished (status: {summary.get('status', 'none')}): a law takes the loss at the end of a "
            f"schedule; resume it, or leave it out"
        )
    loss = summary.get("eval/loss")
    if not isinstance(loss, int | float) or not 0 < loss < math.inf:
        raise ConfigError(f"{folder} has no loss on held-out data (eval/loss in summary.json is {loss}); leave it out")
    config, model = yaml.safe_load((folder / "config.yaml").read_text()), read_model(folder)
    _check(folder, config, model)
    total, tables = count(model)
    tokens, data = summary["tokens"], receipt["data"]
    available = sum(part["train"].get("tokens", 0) for part in data.values())
    return FinishedRun(
        folder.resolve().name, total - tables, total, tokens, tokens / available if available else 0.0,
        receipt["model"]["flops_per_token"] * tokens, loss, _same(config, data),
    )  # fmt: skip


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        missing = not (folder / name).is_file()
        what = f"no {name} in it" if missing else f"{name} cannot be read: {error}"
        raise ConfigError(f"{folder} is no finished run: {what}; leave it out, or finish it") from error


def _check(folder: Path, config: dict[str, Any], model: ModelConfig) -> None:
    if config.get("init_from"):
        raise ConfigError(
            f"{folder} starts from other parameters (init_from={config['init_from']}): what they saw is not in its "
            f"tokens; a law takes runs from scratch"
        )
    for prefix, part in model.towers().items():
        if part.num_experts:
            raise ConfigError(
                f"{folder} has experts ({prefix}.num_experts={part.num_experts}): this law knows one size a model; "
                f"leave it out"
            )


def _same(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Task, text, hold-out, tokenizer and the length of a row."""
    hashes = {
        part: {key: facts[key] for key in ("text_sha256", "sha256", "tokenizer_sha256") if key in facts}
        | {"heldout": facts["heldout"]}
        for part, facts in data.items()
    }
    keys = ("holdout_every", "fold", "seq_len", "target_len", "isolate_documents")
    weights = {
        name: [part["weight"], part.get("final_weight", -1.0)] for name, part in config["data"]["mixture"].items()
    }
    newer = {"packing": "windows", "curriculum": "none"}  # runs of before have no such keys
    return {
        "text": hashes,
        "objective": {"kind": config["objective"]["kind"]},
        "data": {key: config["data"][key] for key in keys}
        | {key: config["data"].get(key, default) for key, default in newer.items()}
        | {"mixture": weights},
    }


def count(model: ModelConfig) -> tuple[int, int]:
    """(all parameters, those of embedding tables and the vocabulary's head)."""
    shapes = nnx.eval_shape(lambda: build_model(model, rngs=nnx.Rngs(0)))
    specs = jax.tree.leaves(param_specs(nnx.state(shapes, nnx.Param)))
    sizes = [(math.prod(spec.shape), spec.kind is ParamKind.embedding) for spec in specs]
    return sum(size for size, _ in sizes), sum(size for size, table in sizes if table)


def _read_file(file: Path) -> list[FinishedRun]:
    """Runs that --json wrote."""
    try:
        rows = json.loads(file.read_text())["runs"]
        return [FinishedRun(**{name: row[name] for name in FinishedRun._fields}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is neither a run directory nor a file that --json wrote: {error!r}") from error
