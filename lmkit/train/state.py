"""The training state: born sharded, one plain dictionary.

{"step": int32 [], "params": {...}, "opt": optax state, "ema": {...} where asked for}
"""

import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmkit.config.model import ModelConfig
from lmkit.config.sections import OptimConfig
from lmkit.models import build_model
from lmkit.nn.param import ParamSpec, param_specs
from lmkit.optim.build import Optim, build_optim
from lmkit.parallel.rules import sharding_of

State = dict[str, Any]


@dataclass(frozen=True)
class Blueprint:
    """Everything about the state but its values."""

    model_config: ModelConfig
    graph: nnx.GraphDef
    specs: Any  # tree of ParamSpec
    optim: Optim
    ema: float
    mesh: Mesh
    shardings: State
    shapes: State  # ShapeDtypeStructs with those shardings

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes["params"]))

    @property
    def state_bytes_per_device(self) -> int:
        """Bytes of parameters, optimiser state and averages on one device."""
        return sum(
            leaf.dtype.itemsize * int(jnp.prod(jnp.array(leaf.sharding.shard_shape(leaf.shape), float)))
            for leaf in jax.tree.leaves(self.shapes)
        )

    def merge(self, params: Any) -> nnx.Module:
        """The model with these parameters; free at trace time."""
        return nnx.merge(self.graph, nnx.State(params))


def root_key(seed: int, use: str) -> jax.Array:
    """The key of one use of randomness in a run; fold in the step where it changes by step."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))


def make_blueprint(model: ModelConfig, optim: OptimConfig, steps: int, mesh: Mesh) -> Blueprint:
    """Shapes and shardings of the state, with nothing allocated.

    Raises ConfigError where the mesh does not divide a parameter.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build_model(model, nnx.Rngs(0))))
    specs = param_specs(abstract)
    chain = build_optim(optim, steps, specs)
    paths = jax.tree.map_with_path(lambda path, spec: jax.tree_util.keystr(path, simple=True, separator="."), specs)
    params = jax.tree.map(lambda spec, name: sharding_of(spec.dims, mesh, spec.shape, name), specs, paths)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any, spec: ParamSpec, sharding: NamedSharding) -> Any:
        if _is_masked(leaf):
            return leaf
        return sharding if leaf.shape == spec.shape else replicated  # factored moments are small

    bare = jax.eval_shape(lambda: _init(model, chain, optim.ema, jax.random.key(0)))
    shardings = {
        "step": replicated,
        "params": params,
        "opt": optax.tree_map_params(
            chain.transform,
            place,
            bare["opt"],
            specs,
            params,
            transform_non_params=lambda _: replicated,
            is_leaf=_is_masked,
        ),
    }
    if optim.ema:
        shardings["ema"] = params
    shapes = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), bare, shardings
    )
    return Blueprint(model, graph, specs, chain, optim.ema, mesh, shardings, shapes)


def _is_masked(leaf: Any) -> bool:
    """Where one rule of a partitioned optimiser leaves a parameter to another."""
    return isinstance(leaf, optax.MaskedNode)


def init_state(blueprint: Blueprint, seed: int) -> State:
    """A fresh state. Each device makes its own shards; no host ever holds the whole."""
    init = jax.jit(
        lambda key: _init(blueprint.model_config, blueprint.optim, blueprint.ema, key),
        out_shardings=blueprint.shardings,
    )
    return init(root_key(seed, "init"))


def _init(model: ModelConfig, optim: Optim, ema: float, key: jax.Array) -> State:
    params = nnx.to_pure_dict(nnx.split(build_model(model, nnx.Rngs(params=key)))[1])
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "opt": optim.transform.init(params)}
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if ema else {})


def evaluation_params(blueprint: Blueprint, state: State) -> Any:
    """The parameters to evaluate and export: the moving average where there is one."""
    if "ema" in state:
        return state["ema"]
    return blueprint.optim.evaluation_params(state["opt"], state["params"])
