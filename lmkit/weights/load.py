"""Parameters to start from: of a run, a checkpoint, a Hugging Face folder, a hub id or a .gguf file.

The one place that knows all of them. A LoRA run's checkpoints hold adapters alone; its base.json says what they adapt.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lmkit import interop
from lmkit.checkpoint import find_checkpoint, load_part
from lmkit.config.base import ConfigError
from lmkit.config.saved import MODEL_FILE, read_model
from lmkit.config.sections.model import ModelConfig
from lmkit.interop.table import unlike
from lmkit.models import MODELS, build_model
from lmkit.nn.lora import A, is_adapter, merge_lora
from lmkit.nn.param import param_specs, resting_dtype
from lmkit.nn.tree import divide, flat, nested, union
from lmkit.parallel.devices import devices_here
from lmkit.parallel.rules import sharding_of
from lmkit.weights.base import BASE, fingerprint, read_base, weights_at
from lmkit.weights.source import Form, form_of

Shapes = dict[str, tuple[int, ...]]


class LoadedParams(NamedTuple):
    """Parameters, the file or folder they are from, heads that were not there, heads left there, more worth telling."""

    params: Any
    path: Path
    fresh: list[str]
    left: list[str]
    notes: list[str]

    def messages(self) -> list[str]:
        """Lines for the user."""
        heads = [
            f"{what}: {', '.join(names)}" for what, names in (("fresh", self.fresh), ("not taken", self.left)) if names
        ]
        return [f"parameters from {self.path}", *(["; ".join(heads)] if heads else []), *self.notes]


def load_start(init_from: str, model: ModelConfig, shapes: Any, *, averaged: bool = False) -> LoadedParams:
    """Parameters for a model, without the heads that are not there or have another shape; adapters are folded in.

    Args:
        shapes: ShapeDtypeStructs of its parameters, with shardings or without; no adapters. What is read is rounded to
            their dtypes after all sums, before it is placed.
        averaged: of a checkpoint take the average that is evaluated (ema, schedule-free), where there is one.

    Raises ConfigError where the model there computes something else, or lacks what is no head, naming both.
    """
    path = interop.locate(init_from)
    if form_of(path) is not Form.run:
        return _from_folder(init_from, path, model, shapes)
    return _from_checkpoint(init_from, path, model, shapes, averaged)


def model_shapes(model: ModelConfig, mesh: Mesh | None = None, *, resting: bool = False) -> Any:
    """ShapeDtypeStructs of a model's parameters, sharded over a mesh where one is given, else on the first device.

    They are float32, or `resting` those of a model that does not train (`resting_dtype`).
    """
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(model, nnx.Rngs(0))))[1])

    def shape(path: str, spec: Any) -> jax.ShapeDtypeStruct:
        sharding: Any = SingleDeviceSharding(devices_here()[0])
        if mesh is not None:
            sharding = sharding_of(spec.dims, mesh, spec.shape, path)
        dtype = resting_dtype(model, spec) if resting else jnp.float32
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)

    return nested({path: shape(path, spec) for path, spec in flat(specs).items()})


def run_of(checkpoint: Path) -> Path:
    """The run directory of one of its checkpoints."""
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _from_folder(init_from: str, path: Path, mine: ModelConfig, shapes: Any) -> LoadedParams:
    theirs = interop.read_config(path)
    _same_kind(init_from, mine, theirs)
    if here := unlike(mine, theirs, ignore=mine.head_keys):
        there = unlike(theirs, mine, ignore=mine.head_keys)
        raise ConfigError(
            f"init_from={init_from}: the model there has {', '.join(there)}; this one {', '.join(here)}"
            + _hint(" ".join(here))
        )
    there = {name: tuple(leaf.shape) for name, leaf in flat(model_shapes(theirs)).items()}
    common, fresh, left = _fit(init_from, mine, shapes, there)
    notes: list[str] = []
    params = interop.load_params(path, theirs, common, partial=True, notes=notes)
    return LoadedParams(params, path, fresh, left, notes)


def _from_checkpoint(init_from: str, path: Path, model: ModelConfig, shapes: Any, averaged: bool) -> LoadedParams:
    place, saved, problems = find_checkpoint(path)
    trained, frozen = ({name: tuple(leaf.shape) for name, leaf in flat(saved.get(key, {})).items()}
                       for key in ("params", "frozen"))  # fmt: skip
    run, notes = run_of(place), []
    damaged = [f"init_from={init_from}: using {place.name}; {problem}" for problem in problems]

    def read(wanted: Any) -> Any:
        resting, params = divide(wanted, frozen)
        return union(_read_trained(place, saved, params, averaged), load_part(place, "frozen", resting))

    if (run / MODEL_FILE).is_file():
        theirs = read_model(run, to_build=False)
        _same_kind(init_from, model, theirs)
        if here := unlike(model, theirs, ignore=model.head_keys):
            others = unlike(theirs, model, ignore=model.head_keys)
            notes = [f"the model of init_from had {', '.join(others)}; this one {', '.join(here)}"]
    if any(is_adapter(name) for name in trained):
        found = _folded(run, place, read, trained, model, shapes)
    else:
        common, fresh, left = _fit(init_from, model, shapes, trained | frozen)
        found = LoadedParams(read(common), place, fresh, left, [])
    return found._replace(notes=[*damaged, *notes, *found.notes])


def _read_trained(place: Path, saved: dict[str, Any], shapes: Any, averaged: bool) -> Any:
    """What trained of a checkpoint, or the average of it that is evaluated."""
    if averaged and "ema" in saved:
        return load_part(place, "ema", shapes)
    opt: Any = saved.get("opt")
    last = opt[-1] if averaged and isinstance(opt, list) and opt else None
    if not isinstance(last, dict) or not {"z", "b1"} <= set(last) or not flat(shapes):
        return load_part(place, "params", shapes)
    # schedule-free: y = (1 - b1) z + b1 x trains, x is evaluated (Defazio et al. 2024, equation 2)
    exact = _float32(shapes)
    params = load_part(place, "params", exact)
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))
    state = load_part(place, "opt", [*[None] * (len(opt) - 1), {"z": exact, "b1": one}])[-1]
    b1 = float(state["b1"])
    return jax.tree.map(lambda y, z, shape: ((y - (1.0 - b1) * z) / b1).astype(shape.dtype), params, state["z"], shapes)


def _folded(run: Path, place: Path, read: Callable, there: Shapes, model: ModelConfig, shapes: Any) -> LoadedParams:
    """The parameters of a LoRA run: its base's, those it trained beside the adapters, the adapters folded in."""
    mine, heads, wanted = flat(shapes), _heads(model), {}
    adapted = {f"{path.removesuffix(A)}.kernel" for path in there if path.endswith(A)}
    base = load_base(run, model, _float32(shapes, adapted))  # sums are rounded once
    misfit = {path.split(".")[0] for path, shape in there.items() if path in mine and mine[path].shape != shape} & heads
    gone = {head for head in heads for path in there if path.startswith(f"{head}.") and path not in mine}
    placed: Any = next(iter(mine.values())).sharding
    # The pairs are small: on every device.
    whole = NamedSharding(placed.mesh, PartitionSpec()) if isinstance(placed, NamedSharding) else placed
    for path, shape in there.items():
        if is_adapter(path):
            wanted[path] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        elif path in mine and path.split(".")[0] not in misfit:
            wanted[path] = mine[path]
    trained = read(nested(wanted))
    kept = nested({path: leaf for path, leaf in flat(base.params).items() if path.split(".")[0] not in misfit})
    scale = read_base(run)["scale"]
    fresh = sorted(misfit | {head for head in base.fresh if not any(path.startswith(f"{head}.") for path in wanted)})
    params = flat(merge_lora(union(kept, trained), scale))
    for path in adapted & set(params):
        params[path] = params[path].astype(mine[path].dtype)
    return LoadedParams(nested(params), place, fresh, sorted({*base.left, *gone}), base.notes)


def _float32(shapes: Any, paths: Collection[str] | None = None) -> Any:
    """The shapes with these leaves, or all, in float32."""
    return nested({
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=getattr(leaf, "sharding", None))
        if paths is None or path in paths else leaf
        for path, leaf in flat(shapes).items()
    })  # fmt: skip


def load_base(run: Path, model: ModelConfig, shapes: Any, init_from: str = "") -> LoadedParams:
    """The parameters that a LoRA run adapts, found where they were when it began, else at `init_from`.

    Raises ConfigError where they are gone, or no longer the same.
    """
    if not (run / BASE).is_file():
        raise ConfigError(
            f"{run}: its checkpoints hold adapters alone, and {BASE}, which says what they adapt, is missing: bring it"
        )
    base = read_base(run)
    where = base["place"] if Path(base["place"]).exists() else init_from or base["init_from"]
    if "://" not in where and not Path(where).expanduser().exists():
        raise ConfigError(
            f"{run} adapts the parameters at {base['place']}, which are gone: put them back, or resume it with "
            f"init_from= where they are now"
        )
    path = interop.locate(where)
    if fingerprint(weights_at(path)) != base["fingerprint"]:
        raise ConfigError(
            f"init_from={where} is not what {run} adapts, which was {base['place']}: its files differ; give "
            f"init_from= a copy of those, or start again with another run.dir="
        )
    return load_start(str(path), model, shapes)


def _same_kind(init_from: str, mine: ModelConfig, theirs: ModelConfig) -> None:
    if type(mine) is not type(theirs):
        raise ConfigError(
            f"init_from={init_from}: a {type(theirs).__name__} is there; this model is a {type(mine).__name__}"
        )


def _heads(model: ModelConfig) -> set[str]:
    return set(getattr(MODELS[type(model)], "HEADS", ()))


def _fit(init_from: str, model: ModelConfig, shapes: Any, there: Shapes) -> tuple[Any, list[str], list[str]]:
    """The part of `shapes` that is there, heads that start afresh, heads that are left behind."""
    mine, heads = {path: tuple(leaf.shape) for path, leaf in flat(shapes).items()}, _heads(model)
    differ = [path for path in {*mine, *there} if mine.get(path) != there.get(path)]
    fresh = {path.split(".")[0] for path in differ if path in mine} & heads
    left = {path.split(".")[0] for path in differ if path not in mine} & heads
    problems = []
    for path in sorted(path for path in differ if path.split(".")[0] not in heads):
        if path not in there:
            problems.append(f"{path} {list(mine[path])} is not there")
        elif path not in mine:
            problems.append(f"{path} {list(there[path])} is there and not in this model")
        else:
            problems.append(f"{path} is {list(there[path])} there and {list(mine[path])} in this model" + _hint(path))
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ConfigError(f"init_from={init_from}: {'; '.join(problems[:6])}{more}")
    common = {path: leaf for path, leaf in flat(shapes).items() if path.split(".")[0] not in fresh}
    return nested(common), sorted(fresh), sorted(left)


def _hint(words: str) -> str:
    table = "position.table" in words or "image_size" in words or "max_seq_len" in words
    return " (tables of positions are not resized: take the length or image size of there)" if table else ""
