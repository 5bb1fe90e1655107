"""lmkit's row of tools/bench.py: trains a GPT-2-shaped model on random tokens, driven over stdin.

Protocol, shared with the peers: a JSON line {"ready": true, ...} after the warm-up; then for each line "go N" on
stdin N steps and a line {"chunk_s": seconds a step}; "end" ends with a summary line.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time

import jax
import numpy as np
from jax import numpy as jnp

from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.config.process import prefer_huge_pages
from lmkit.parallel import build_mesh, sharding_of
from lmkit.parallel.devices import setup_jax
from lmkit.train.setup import compile_programs
from lmkit.train.state import Blueprint, State, init_state, make_blueprint

SHAPES = {  # layers, width, heads, vocabulary, sequence, batch: the peers' configurations
    "T": (2, 64, 2, 512, 64, 4),
    "S": (6, 384, 6, 8192, 256, 16),
    "M": (12, 768, 12, 50304, 512, 2),
    "G124": (12, 768, 12, 50304, 1024, 32),
    "G1B3": (24, 2048, 16, 50304, 2048, 8),
}


def experiment_of(name: str, dtype: str, extra: list[str]) -> Experiment:
    """GPT-2's layout with the peers' optimiser: AdamW 3e-4 (0.9, 0.95), decay 0.1 on all matrices, clipping at 1."""
    layers, width, heads, vocab, seq, batch = SHAPES[name]
    overrides = f"""run.name=bench model=gpt2_124m model.num_layers={layers} model.embed_dim={width}
        model.num_heads={heads} model.vocab_size={vocab} model.max_seq_len={seq} model.dtype={dtype} data.seq_len={seq}
        data.isolate_documents=false train.batch_size={batch} optim.schedule=constant optim.warmup_steps=0
        optim.decay=[matrix,embedding] mesh.data=-1""".split()
    return compose([*overrides, *extra])


def reference_weights(name: str) -> dict[str, np.ndarray]:
    """The weights that the peers start from (seed 1, drawn in their order), so that the losses can be compared."""
    layers, width, _, vocab, seq, _ = SHAPES[name]
    rng, small = np.random.default_rng(1), 0.02 / (2 * layers) ** 0.5

    def normal(*shape: int, std: float = 0.02) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)

    weights = {"wte": normal(vocab, width), "wpe": normal(seq, width)}
    for layer in range(layers):
        weights |= {f"{layer}.qkv": normal(width, 3 * width), f"{layer}.out": normal(width, width, std=small)}
        weights |= {f"{layer}.up": normal(width, 4 * width), f"{layer}.down": normal(4 * width, width, std=small)}
    return weights


def load_reference(state: State, blueprint: Blueprint, name: str) -> State:
    """The state with the peers' initial weights."""
    layers, width, heads, *_ = SHAPES[name]
    w = reference_weights(name)
    stacked = {p: np.stack([w[f"{layer}.{p}"] for layer in range(layers)]) for p in ("qkv", "out", "up", "down")}
    qkv = stacked["qkv"].reshape(layers, width, 3, heads, width // heads)
    params = state["params"]
    blocks = params["stack"]["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    new = [
        (params["embed"], "table", w["wte"]),
        (params["input"]["position"], "table", w["wpe"]),
        (attention["out"], "kernel", stacked["out"].reshape(layers, heads, width // heads, width)),
        (mlp["up"], "kernel", stacked["up"]),
        (mlp["down"], "kernel", stacked["down"]),
        *((attention[part], "kernel", qkv[:, :, i]) for i, part in enumerate("qkv")),
    ]
    for group, key, value in new:
        assert group[key].shape == value.shape
        group[key] = jax.device_put(jnp.asarray(value), group[key].sharding)
    return state


def main() -> None:
    """Sets up, warms up, answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="S", choices=SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--name", default="lmkit")
    parser.add_argument("--interactive", action="store_true")
    parser.add_argument("--threads", type=int, help="taken from the CPUs that the process may use")
    parser.add_argument("overrides", nargs="*", help="lmkit keys, e.g. model.scan_layers=false")
    args = parser.parse_args()
    began = time.time()
    experiment = experiment_of(args.config, {"fp32": "float32", "bf16": "bfloat16"}[args.dtype], args.overrides)
    setup_jax(dataclasses.replace(experiment.run, compile_cache=""))
    blueprint = make_blueprint(experiment.model, experiment.optim, 1000, build_mesh(experiment.mesh))
    _, _, _, vocab, seq, _ = SHAPES[args.config]
    batch = experiment.train.batch_size
    sharding = sharding_of(("batch", "seq"), blueprint.mesh)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    shapes = {name: jax.ShapeDtypeStruct((batch, seq), dtype, sharding=sharding) for name, dtype in dtypes.items()}
    programs = compile_programs(experiment, blueprint, shapes)
    state = load_reference(init_state(blueprint, 0), blueprint, args.config)
    rng = np.random.default_rng(0)
    data = [rng.integers(0, vocab, (batch, seq + 1), dtype=np.int32) for _ in range(8)]
    weights = np.ones((batch, seq), np.float32)
    losses: list[float] = []
    count = 0

    def run(steps: int) -> float:
        nonlocal state, count
        start = time.perf_counter()
        metrics = {}
        for _ in range(steps):
            tokens = data[count % len(data)]
            arrays = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
            state, metrics = programs.train(state, jax.device_put(arrays, sharding))
            count += 1
        losses.append(float(metrics["loss"]))
        return (time.perf_counter() - start) / steps

    with jax.set_mesh(blueprint.mesh):
        run(1)
        to_first = round(time.time() - began, 2)
        for _ in range(args.warmup - 1):
            run(1)
        info = {"name": args.name, "params": blueprint.num_params, "versions": {"jax": jax.__version__}}
        info |= {"tokens_per_step": batch * seq, "to_first_step_s": to_first, "warm_losses": losses[:]}
        print(json.dumps({"ready": True, **info}), flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            print(json.dumps({"chunk_s": run(int(line.split()[1]))}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**info, "last_loss": losses[-1], "peak_rss_mb": round(peak)}), flush=True)


if __name__ == "__main__":
    prefer_huge_pages()  # as lmkit.train does
    main()
