"""The best mesh, remat and number of micro-batches: every one by arithmetic, the best few by the compiler.

A mesh is tried with each policy of remat, and the batch is cut into more micro-batches until a step fits; what fits is
ranked by its tokens a second. Whether a mesh goes with the model and the batch is what lmkit.config checks anyway.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from omegaconf import OmegaConf

from lmkit.config.arithmetic.mesh import AXES, batch_shards
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import Remat
from lmkit.cost.context import count_devices
from lmkit.cost.estimate import Estimate, estimate
from lmkit.plan.advice import with_remat
from lmkit.plan.compiled import Compiled, compiled_plan

_POLICIES = (Remat.none, Remat.dots, Remat.names, Remat.full)  # what `offload` costs is not in the arithmetic


class Found(NamedTuple):
    """A way to run the experiment that fits."""

    estimate: Estimate
    compiled: Compiled | None = None

    @property
    def keys(self) -> dict[str, str]:
        """What to set, by dotted keys."""
        context = self.estimate.context
        model, train = context.experiment.model, context.experiment.train
        keys = {f"mesh.{axis}": str(getattr(context.experiment.mesh, axis)) for axis in AXES}
        keys |= {f"{prefix}.remat": part.remat.name for prefix, part in model.towers().items()}
        return keys | {"train.accumulate_steps": str(train.accumulate_steps)}


class Search(NamedTuple):
    """What a search came to."""

    best: list[Found]  # by tokens a second
    meshes: int  # that go with the experiment
    tried: int  # estimates
    closest: Estimate  # of all, the one that needs the least memory
    reason: str = ""  # why none was compiled, where that was asked


def search(experiment: Experiment) -> Search:
    """Raises ConfigError where no mesh of the devices goes with the experiment."""
    found, tried, meshes, reason = [], 0, 0, ""
    closest: Estimate | None = None
    for mesh in _meshes(experiment):
        try:
            base = estimate(dataclasses.replace(experiment, mesh=mesh), closest and closest.context.blueprint)
        except ConfigError as error:
            reason = str(error)
            continue
        meshes += 1
        for remat in _POLICIES:
            for changed in _cut(base, remat):
                other = estimate(changed, base.context.blueprint)
                tried += 1
                if closest is None or other.memory.peak < closest.memory.peak:
                    closest = other
                if other.fits:
                    found.append(Found(other))
                    break  # smaller micro-batches are slower
    if closest is None:
        raise ConfigError(
            f"plan.search: no mesh of {count_devices(experiment)} devices over plan.axes={experiment.plan.axes} goes "
            f"with the experiment; one was refused since {reason}"
        )
    found.sort(key=lambda one: (-one.estimate.tokens_per_sec, one.estimate.memory.peak))
    return Search(found, meshes, tried, closest)


def confirmed(found: Search, count: int) -> Search:
    """The same, the best of them compiled until so many fit; those that do not are left out."""
    best, left = [], list(found.best)
    while left and len(best) < count:
        one = left.pop(0).estimate
        try:
            compiled = compiled_plan(one.context)
        except ConfigError as error:  # there is no compiler here
            return found._replace(reason=str(error))
        if compiled.fits(one.limit):
            best.append(Found(one, compiled))
    return found._replace(best=[*best, *left])


def as_experiment(found: Found) -> str:
    """The YAML of an experiment file that goes on top of another: +experiment=[llama3_8b,NAME]."""
    context = found.estimate.context
    words = [f"{key}={value}" for key, value in found.keys.items()]
    values = OmegaConf.to_yaml(OmegaConf.from_dotlist(words))
    about = (
        f"lmkit.plan for {context.experiment.run.name} on {context.num_devices} x {context.experiment.hardware.name}"
    )
    speed = f"{found.estimate.tokens_per_sec:,.0f} tokens/s by arithmetic"
    return f"# @package _global_\n# Found by {about}: {speed}.\n{values}"


def _meshes(experiment: Experiment) -> Iterator[MeshConfig]:
    """Every way to split the devices over the axes that may be split."""
    experts = any(part.num_experts for part in experiment.model.towers().values())
    axes = [axis for axis in experiment.plan.axes if axis != "expert" or experts]
    for sizes in _splits(count_devices(experiment) // experiment.mesh.num_slices, len(axes)):
        yield dataclasses.replace(experiment.mesh, **dict.fromkeys(AXES, 1) | dict(zip(axes, sizes, strict=True)))


def _splits(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every product of so many factors that is `number`."""
    if parts == 0:
        yield from ([()] if number == 1 else [])
        return
    for first in (n for n in range(1, number + 1) if number % n == 0):
        yield from ((first, *rest) for rest in _splits(number // first, parts - 1))


def _cut(base: Estimate, remat: Remat) -> Iterator[Experiment]:
    """The experiment with a policy of remat, and its batch in more and more micro-batches."""
    experiment, train = base.context.experiment, base.context.experiment.train
    rows = train.batch_size // batch_shards(base.context.sizes)
    for micro in (n for n in range(1, rows + 1) if rows % n == 0):
        try:
            yield dataclasses.replace(
                experiment, model=with_remat(experiment.model, remat),
                train=dataclasses.replace(train, accumulate_steps=micro),
            )  # fmt: skip
        except ConfigError:  # stages want as many rows
            continue
