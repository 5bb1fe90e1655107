"""The models that are measured: GPT-2's layout in the peers' sizes, with the peers' optimiser, weights and tokens."""

from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.core.setup import Programs, start_compiling
from lmkit.core.state import Blueprint, State

SHAPES = {  # layers, width, heads, vocabulary, sequence, batch: the peers' configurations, and 350M, which they lack
    "T": (2, 64, 2, 512, 64, 4),
    "S": (6, 384, 6, 8192, 256, 16),
    "M": (12, 768, 12, 50304, 512, 2),
    "G124": (12, 768, 12, 50304, 1024, 32),
    "350M": (24, 1024, 16, 50304, 1024, 16),
    "G1B3": (24, 2048, 16, 50304, 2048, 8),
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def experiment_of(name: str, dtype: str, extra: list[str]) -> Experiment:
    """AdamW 3e-4 (0.9, 0.95), decay 0.1 on all matrices, clipping at 1. `extra`: lmkit keys.

    The model has as many positions as data.seq_len, unless `extra` says how many.
    """
    layers, width, heads, vocab, seq, batch = SHAPES[name]
    lengths = [word.partition("=")[2] for word in extra if word.startswith("data.seq_len=")]
    overrides = f"""run.name=bench model=gpt2_124m model.num_layers={layers} model.embed_dim={width}
        model.num_heads={heads} model.vocab_size={vocab} model.max_seq_len={lengths[-1] if lengths else seq}
        model.dtype={DTYPES[dtype]} data.seq_len={seq} data.isolate_documents=false train.batch_size={batch}
        optim.schedule=constant optim.warmup_steps=0 optim.decay=[matrix,embedding] mesh.data=-1""".split()
    return compose([*overrides, *extra])


def reference_weights(layers: int, width: int, vocab: int, seq: int) -> dict[str, np.ndarray]:
    """The weights that the peers start from (seed 1, drawn in their order), so that the losses can be compared."""
    rng, small = np.random.default_rng(1), 0.02 / (2 * layers) ** 0.5

    def normal(*shape: int, std: float = 0.02) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)

    weights = {"wte": normal(vocab, width), "wpe": normal(seq, width)}
    for layer in range(layers):
        weights |= {f"{layer}.qkv": normal(width, 3 * width), f"{layer}.out": normal(width, width, std=small)}
        weights |= {f"{layer}.up": normal(width, 4 * width), f"{layer}.down": normal(4 * width, width, std=small)}
    return weights


def load_reference(state: State, experiment: Experiment) -> State:
    """The state with the peers' initial weights."""
    model: Any = experiment.model
    layers, width, heads = model.num_layers, model.embed_dim, model.num_heads
    w = reference_weights(layers, width, model.vocab_size, model.max_seq_len)
    params = state["params"]
    blocks = params["stack"]["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]

    def stacked(name: str) -> np.ndarray:
        return np.stack([w.pop(f"{layer}.{name}") for layer in range(layers)])

    def put(group: Any, key: str, value: np.ndarray) -> None:
        assert group[key].shape == value.shape
        group[key] = jax.device_put(jnp.array(value), group[key].sharding)  # a copy: what is numpy's cannot be donated

    put(params["embed"], "table", w.pop("wte"))  # one by one, so that the peak is the training's own
    put(params["input"]["position"], "table", w.pop("wpe"))
    put(mlp["up"], "kernel", stacked("up"))
    put(mlp["down"], "kernel", stacked("down"))
    put(attention["out"], "kernel", stacked("out").reshape(layers, heads, width // heads, width))
    qkv = stacked("qkv").reshape(layers, width, 3, heads, width // heads)
    for i, part in enumerate("qkv"):
        put(attention[part], "kernel", qkv[:, :, i])
    return state


def tokens_of(experiment: Experiment, batches: int = 8) -> list[np.ndarray]:
    """The peers' random tokens, int32 [B, T + 1] a batch."""
    model: Any = experiment.model
    rng, shape = np.random.default_rng(0), (experiment.train.batch_size, experiment.data.seq_len + 1)
    return [rng.integers(0, model.vocab_size, shape, dtype=np.int32) for _ in range(batches)]


def batch_of(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What the train step takes."""
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((tokens.shape[0], tokens.shape[1] - 1), np.float32),
    }


def start_steps(experiment: Experiment, blueprint: Blueprint, sharding: Any) -> Future[Programs]:
    """Begins to compile the train step, from shapes alone."""
    shape = (experiment.train.batch_size, experiment.data.seq_len)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    shapes: Any = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}
    return start_compiling(experiment, blueprint, shapes)
