"""The compiler options of the train step on a TPU (compiler/choice.py); other platforms have no choice."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from lmkit.compiler.choice import PLAIN, TPU_OPTIONS, WHOLE, Fastest, choice_file, compile_fastest
from lmkit.compiler.steptime import step_timeline
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.hardware import known_hardware
from lmkit.config.sections.plan import assumed
from lmkit.config.sections.run import CollectiveMatmul
from lmkit.core.state import Blueprint
from lmkit.parallel.devices import platform_of

_SPLIT = ("fsdp", "tensor", "expert")  # axes that split weights: without them nothing is gathered for a product


def tpu_candidates(asked: CollectiveMatmul, blueprint: Blueprint) -> dict[str, dict[str, Any]]:
    """Options to try, by name. One where there is no choice."""
    split = math.prod(blueprint.mesh.shape.get(axis, 1) for axis in _SPLIT) > 1
    if platform_of(blueprint.mesh) != "tpu" or not split or asked is CollectiveMatmul.compiler:
        return {PLAIN: {}}
    return {WHOLE: TPU_OPTIONS[WHOLE]} if asked is CollectiveMatmul.never else TPU_OPTIONS


def compile_lowered(experiment: Experiment, blueprint: Blueprint, lowered: Any, cache: str = "") -> Fastest:
    """The train step, lowered before, with the options that make it fastest.

    `cache`: the folder of compiled programs, in which choices are remembered if it is local; "" for none.
    """
    candidates, device = tpu_candidates(experiment.run.collective_matmul, blueprint), blueprint.mesh.devices.flat[0]
    remembered = None
    if cache and "://" not in cache and len(candidates) > 1:
        remembered = choice_file(Path(cache), lowered, device.device_kind, device.client.platform_version)

    def seconds_of(text: str) -> float:
        hardware = known_hardware(experiment.hardware, device.device_kind)
        if hardware is None:
            raise ConfigError(f"no entry of conf/hardware stands for {device.device_kind}")
        hardware = dataclasses.replace(hardware, devices=blueprint.mesh.devices.size)
        sizes, share = dict(blueprint.mesh.shape), experiment.plan.network_share or assumed("tpu")["network_share"]
        return step_timeline(text, hardware, experiment.mesh, sizes, share).seconds

    return compile_fastest(lowered, candidates, seconds_of, remembered)
