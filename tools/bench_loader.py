"""How fast the loader alone delivers batches from a warm store: python tools/bench_loader.py [seq_len] [batch]."""

import sys
import time

import jax

from lmkit.config.entry import compose
from lmkit.data.batches import Windows
from lmkit.data.loader import train_batches
from lmkit.data.prepare import prepare
from lmkit.parallel import build_mesh


def main() -> None:
    """Prints tokens per second, with threads reading ahead and copies onto the device included."""
    seq_len, batch = (int(word) for word in [*sys.argv[1:], 1024, 256][:2])
    experiment = compose(["run.name=loader", "data=python_stdlib", f"data.seq_len={seq_len}"])
    data = prepare(experiment.data, experiment.tokenizer)
    windows = Windows(data.stores, data.weights, data.tokenizer, experiment.data, experiment.objective, seed=0)
    steps = max(20_000_000 // (seq_len * batch), 20)
    batches = train_batches(
        windows, experiment.data, first_step=0, steps=steps, batch_size=batch, mesh=build_mesh(experiment.mesh)
    )
    jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for one in batches:
        jax.block_until_ready(one)
    rate = (steps - 1) * batch * seq_len / (time.perf_counter() - start)
    print(f"seq_len {seq_len}, batch {batch}: {rate / 1e6:.1f} M tokens/s")


if __name__ == "__main__":
    main()
