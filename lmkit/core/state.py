"""The training state: born sharded, one plain dictionary.

{"step": int32 [], "params": {...}, "opt": optax state, "ema": {...} where asked for, "frozen": {...} where some are}

"params" are those that train; gradients, optimiser state and averages are over them alone.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmkit.compiler.programs import jit
from lmkit.config.base import ConfigError
from lmkit.config.patterns import matching
from lmkit.config.sections.lora import LoraConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.optim import OptimConfig
from lmkit.models import build_model
from lmkit.nn.lora import add_lora, is_adapter
from lmkit.nn.param import ParamSpec, param_specs, resting_dtype
from lmkit.nn.tree import divide, flat, union
from lmkit.optim.build import Optim, build_optim
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import sharding_of

State = dict[str, Any]


def local_bytes(tree: object) -> float:
    """Bytes on one device of a tree of ShapeDtypeStructs with shardings."""
    return float(sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)
    ))  # fmt: skip


@dataclass(frozen=True)
class Blueprint:
    """Everything about the state but its values."""

    model_config: ModelConfig
    graph: nnx.GraphDef
    specs: Any  # tree of ParamSpec, of all parameters
    trainable: frozenset[str]  # dotted paths
    lora: LoraConfig
    optim: Optim
    ema: float
    mesh: Mesh
    shardings: State
    shapes: State  # ShapeDtypeStructs with those shardings

    @property
    def param_shapes(self) -> Any:
        """ShapeDtypeStructs, with shardings, of all parameters: the trained and the frozen."""
        return union(self.shapes["params"], self.shapes.get("frozen", {}))

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.param_shapes))

    @property
    def num_trainable(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes["params"]))

    @property
    def unsaved(self) -> tuple[str, ...]:
        """Keys of the state that checkpoints leave out: beside adapters, the frozen come from init_from again."""
        return ("frozen",) if self.lora.rank and "frozen" in self.shapes else ()

    @property
    def state_bytes_per_device(self) -> int:
        """Bytes of parameters, optimiser state and averages on one device."""
        return int(local_bytes(self.shapes))

    def on(self, mesh: Mesh) -> "Blueprint":
        """The same on another mesh. Raises ConfigError where it does not divide a parameter."""
        shardings, shapes = _laid_out(self.shapes, self.specs, self.trainable, self.optim, mesh)
        return replace(self, mesh=mesh, shardings=shardings, shapes=shapes)

    def jit(self, function: Callable, **options: Any) -> Any:
        """A program on this mesh; `options` as in compiler/programs.py."""
        return jit(function, platform_of(self.mesh), **options)

    def merge(self, *params: Any) -> nnx.Module:
        """The model with the parameters of these trees, which together are all; free at trace time."""
        return nnx.merge(self.graph, nnx.State(union(*params)))


def root_key(seed: int, use: str) -> jax.Array:
    """The key of one use of randomness in a run; fold in the step where it changes by step."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))


def make_blueprint(
    model: ModelConfig, optim: OptimConfig, steps: int, mesh: Mesh, lora: LoraConfig | None = None
) -> Blueprint:
    """Shapes and shardings of the state, with nothing allocated.

    Raises ConfigError where the mesh does not divide a parameter, a pattern matches nothing, or nothing would train.
    """
    lora = lora or LoraConfig()
    graph, abstract = nnx.split(nnx.eval_shape(lambda: _build(model, lora, nnx.Rngs(0))))
    all_specs = param_specs(abstract)
    trainable = _trainable(list(flat(all_specs)), optim.freeze, lora)
    chain = build_optim(optim, steps, divide(all_specs, trainable)[0])
    bare = jax.eval_shape(lambda: _init(model, lora, trainable, chain, optim.ema, jax.random.key(0), {}))
    shardings, shapes = _laid_out(bare, all_specs, trainable, chain, mesh)
    return Blueprint(model, graph, all_specs, trainable, lora, chain, optim.ema, mesh, shardings, shapes)


def _laid_out(bare: State, all_specs: Any, trainable: frozenset[str], chain: Optim, mesh: Mesh) -> tuple[State, State]:
    """The shardings of the state on a mesh, and its shapes with them."""
    specs, frozen_specs = divide(all_specs, trainable)
    params, frozen = _shardings(specs, mesh), _shardings(frozen_specs, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any, spec: ParamSpec, sharding: NamedSharding) -> Any:
        if _is_masked(leaf):
            return leaf
        return sharding if leaf.shape == spec.shape else replicated  # factored moments are small

    opt = optax.tree_map_params(
        chain.transform, place, bare["opt"], specs, params,
        transform_non_params=lambda _: replicated, is_leaf=_is_masked,
    )  # fmt: skip
    shardings = {"step": replicated, "params": params, "opt": opt}
    shardings |= ({"ema": params} if "ema" in bare else {}) | ({"frozen": frozen} if frozen else {})
    shapes = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), bare, shardings
    )
    return shardings, shapes


def _build(model: ModelConfig, lora: LoraConfig, rngs: nnx.Rngs) -> nnx.Module:
    made = build_model(model, rngs)
    if lora.rank:
        add_lora(made, lora, rngs)
    return made


def _trainable(paths: list[str], freeze: list[str], lora: LoraConfig) -> frozenset[str]:
    """Which train: adapters, and of the rest (beside adapters: of what `lora.train` names) what is not frozen."""
    adapters = {path for path in paths if is_adapter(path)}
    chosen = set(matching("lora.train", lora.train, paths)) if lora.rank else set(paths)
    if not (left := adapters | (chosen - set(matching("optim.freeze", freeze, paths)))):
        raise ConfigError(f"optim.freeze={freeze} leaves nothing to train: freeze less")
    return frozenset(left)


def _shardings(specs: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every parameter."""
    paths = jax.tree.map_with_path(lambda path, spec: jax.tree_util.keystr(path, simple=True, separator="."), specs)
    return jax.tree.map(lambda spec, name: sharding_of(spec.dims, mesh, spec.shape, name), specs, paths)


def _is_masked(leaf: Any) -> bool:
    """Where one rule of a partitioned optimiser leaves a parameter to another."""
    return isinstance(leaf, optax.MaskedNode)


def init_state(blueprint: Blueprint, seed: int, known: Any = None) -> State:
    """A fresh state. Each device makes its own shards; no host ever holds the whole.

    `known`: parameters that are there already, all or some; they are donated, so that nothing is there twice.
    """
    return make_init(blueprint)(root_key(seed, "init"), known or {})


def make_init(blueprint: Blueprint) -> Any:
    """The program init(key, known) -> state of `init_state`."""

    def init(key: jax.Array, known: Any) -> State:
        return _init(
            blueprint.model_config, blueprint.lora, blueprint.trainable, blueprint.optim, blueprint.ema, key, known
        )

    return blueprint.jit(init, out_shardings=blueprint.shardings, donate_argnums=1)


def _init(
    model: ModelConfig, lora: LoraConfig, trainable: frozenset[str], optim: Optim, ema: float, key: jax.Array,
    known: Any,
) -> State:  # fmt: skip
    every = nnx.split(_build(model, lora, nnx.Rngs(params=key)))[1]
    params, frozen = divide(union(nnx.to_pure_dict(every), known), trainable)
    if lora.rank:  # init_from has them as they are; what optim.freeze names is saved with the run, in float32
        specs = divide(param_specs(every), trainable)[1]
        frozen = jax.tree.map(lambda leaf, spec: leaf.astype(resting_dtype(model, spec)), frozen, specs)
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "opt": optim.transform.init(params)}
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if ema else {}) | ({"frozen": frozen} if frozen else {})


def evaluation_params(blueprint: Blueprint, state: State) -> Any:
    """All parameters to evaluate and export: of those that train the moving average, where there is one."""
    params = state["ema"] if "ema" in state else blueprint.optim.evaluation_params(state["opt"], state["params"])
    return union(params, state["frozen"]) if "frozen" in state else params
