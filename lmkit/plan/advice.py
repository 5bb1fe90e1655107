"""What would help a plan that does not fit: single changes, each with the memory it saves."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import CLIPConfig
from lmkit.config.sections.model import ModelConfig, Remat
from lmkit.cost.context import PlanContext
from lmkit.cost.estimate import Estimate, estimate


class Advice(NamedTuple):
    """A change, as keys to set, and what comes of it."""

    keys: str
    saved: float  # bytes a device
    peak: float
    fits: bool
    step: float  # seconds, of the same batch


def advice(found: Estimate) -> list[Advice]:
    """Changes that save memory; those that fit first, the fastest of them first."""
    rows = []
    for keys, changed in _changes(found.context):
        try:
            other = estimate(changed, found.context.blueprint)
        except ConfigError:  # it divides nothing evenly
            continue
        saved = found.memory.peak - other.memory.peak
        if saved > 0.01 * found.memory.peak:
            rows.append(Advice(keys, saved, other.memory.peak, other.fits, other.step.total))
    return sorted(rows, key=lambda row: (not row.fits, row.step if row.fits else -row.saved))


def _changes(context: PlanContext) -> Iterator[tuple[str, Experiment]]:
    experiment, train = context.experiment, context.experiment.train
    now = max(part.remat.value for part in experiment.model.towers().values())
    for remat in Remat:
        if remat.value > now:
            yield (
                f"model.remat={remat.name}",
                dataclasses.replace(experiment, model=with_remat(experiment.model, remat)),
            )
    for times in (2, 4, 8):
        more = train.accumulate_steps * times
        if train.batch_size % more == 0:
            changed = dataclasses.replace(train, accumulate_steps=more)
            yield f"train.accumulate_steps={more}", dataclasses.replace(experiment, train=changed)
    for source, target in (("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")):
        for times in (2, 4, 8):
            mesh = experiment.mesh
            if getattr(mesh, source) % times:
                continue
            sizes = {source: getattr(mesh, source) // times, target: getattr(mesh, target) * times}
            keys = " ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
            try:
                changed = dataclasses.replace(experiment, mesh=dataclasses.replace(mesh, **sizes))
            except ConfigError:
                continue
            yield keys, changed
    chunk = experiment.objective.chunk_tokens
    if chunk == 0 or chunk > 512:
        yield (
            "objective.chunk_tokens=512",
            dataclasses.replace(experiment, objective=dataclasses.replace(experiment.objective, chunk_tokens=512)),
        )


def with_remat(model: ModelConfig, remat: Remat) -> ModelConfig:
    """The model with this policy in all of its transformers."""
    if isinstance(model, CLIPConfig):
        return dataclasses.replace(model, text=with_remat(model.text, remat), vision=with_remat(model.vision, remat))
    return dataclasses.replace(model, remat=remat)
