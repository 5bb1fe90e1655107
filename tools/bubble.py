"""The bubble of a pipeline, measured: python tools/bubble.py [--stages 4] [--microbatches 8] [--rounds 1].

Pretended devices share the cores, so a wall clock would tell of the scheduler. But each stage does one chunk of work
at every tick, an idle one on rows that nobody takes: CPU seconds of the whole process are ticks times stages times a
chunk. Measured with M and with 2 M micro-batches of the same size, the difference is what M of them cost without a
bubble, and the rest of M's own seconds is the bubble (with what moves rows in and out, which counts against it).
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.arithmetic.pipeline import Pipe
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.models import build_model
from lmkit.nn.attention import make_layer_inputs
from lmkit.nn.param import param_specs
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of


def make_gradient(pipe: Pipe, rows: int, width: int, seq: int) -> tuple[Any, Any, jax.Array]:
    """The compiled gradient of a stack over its stages, its parameters and a stream of `rows` a micro-batch."""
    config = GPTConfig(
        vocab_size=8, num_layers=pipe.stages * pipe.rounds, num_heads=4, embed_dim=width, max_seq_len=seq,
        microbatches=pipe.microbatches, rounds=pipe.rounds,
    )  # fmt: skip
    mesh = build_mesh(MeshConfig(data=1, stage=pipe.stages), jax.devices()[: pipe.stages])
    graph, state = nnx.split(build_model(config, nnx.Rngs(0)).stack)
    layout = jax.tree.map(lambda spec: sharding_of(spec.dims, mesh), param_specs(state))
    params = jax.device_put(nnx.to_pure_dict(state), layout)
    x = jax.random.normal(jax.random.key(0), (rows * pipe.microbatches, seq, width))
    x = jax.device_put(x, sharding_of(("batch",), mesh))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        stack = nnx.merge(graph, nnx.State(params))
        return jnp.sum(stack(x, make_layer_inputs(config, jnp.arange(seq)[None], None), flags=False))

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss), out_shardings=layout).lower(params, x).compile(), params, x


def cpu_seconds(program: Any, *arguments: Any) -> float:
    """Of all threads, in one run."""
    start = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - start


def measure(stages: int, microbatches: int, rounds: int, *, rows: int = 1, width: int = 256, seq: int = 256,
            repeats: int = 7) -> tuple[float, float]:  # fmt: skip
    """(measured, theory): the share of the time in which a stage has nothing to do."""
    pipes = [Pipe(stages, n, rounds) for n in (microbatches, 2 * microbatches)]
    programs = [make_gradient(pipe, rows, width, seq) for pipe in pipes]
    for program in programs:
        cpu_seconds(*program)
    # in turn, so that what else the machine does meets both; the least is what nothing disturbed
    times = [[cpu_seconds(*program) for program in programs] for _ in range(repeats)]
    once, twice = (min(column) for column in zip(*times, strict=True))
    return 1 - (twice - once) / once, pipes[0].bubble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("stages", 4), ("microbatches", 8), ("rounds", 1), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.stages)
    measured, _ = measure(options.stages, options.microbatches, options.rounds, repeats=options.repeats)
    print(f"{Pipe(options.stages, options.microbatches, options.rounds)}; measured {measured:.1%}")


if __name__ == "__main__":
    main()
