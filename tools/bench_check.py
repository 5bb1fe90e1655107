"""Whether the numbers are right: a small model on the device here against float32 on the CPU of the same machine.

    python tools/bench_check.py

Loss and gradients in float32 and bfloat16, with every attention kernel, packed segments too, and greedy text with a
cache of keys and values against the whole row each time. On a machine without an accelerator the CPU is compared with
itself. Appends one JSON line a case to experiments/benchmarks/check.jsonl; the exit status is 1 where a case fails.
Tolerances, with their reasons, are in tools/speed/cases.py.
"""

import argparse
import functools
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "")  # the accelerator and the CPU, both

import jax
import numpy as np
from speed.cases import GRADIENTS, LOSS, MODEL, NEW, ROWS, TEXT, VOCAB, Case, batch_of, cases, dtype_of, products
from speed.records import BENCHMARKS, keep, stamp

from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.core.setup import setup_mesh
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import make_gradients
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.objectives.build import build_objective
from lmkit.parallel import build_mesh, sharding_of


@functools.cache
def reference(packed: bool) -> tuple[float, np.ndarray]:
    """Float32 with full products and XLA's attention, on the CPU."""
    return run(Case("reference", "highest", ["model.attention=xla"], packed), jax.devices("cpu")[0])


def run(case: Case, device: Any) -> tuple[float, np.ndarray]:
    """Loss, and all gradients in a row, on a device. Raises ConfigError where it has no such kernel."""
    experiment = compose([*MODEL, *case.keys, dtype_of(case.precision)])
    mesh = setup_mesh(experiment, [device])
    blueprint = make_blueprint(experiment.model, experiment.optim, 100, mesh)
    objective = build_objective(experiment.objective)
    gradients = make_gradients(blueprint, objective, accumulate=1, seed=0)
    state = init_state(blueprint.on(build_mesh(experiment.mesh, jax.devices("cpu")[:1])), 0)  # the same on each
    state = jax.device_put(jax.device_get(state), blueprint.shardings)
    placed = jax.device_put(batch_of(case.packed), sharding_of(("batch", "seq"), mesh))
    with jax.set_mesh(mesh), products(case.precision):
        grads, sums, weight = jax.jit(gradients)(state, placed)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)]
    return float(sums.loss) / float(weight), np.concatenate(leaves)


def compare(case: Case, device: Any) -> dict[str, float]:
    """Errors of a case."""
    (loss, grads), (true_loss, true) = run(case, device), reference(case.packed)
    errors = {
        "loss": abs(loss - true_loss) / abs(true_loss),
        "gradients": float(np.linalg.norm(grads - true) / np.linalg.norm(true)),
    }
    over = max(errors["loss"] / LOSS[case.precision], errors["gradients"] / GRADIENTS[case.precision])
    return errors | {"over_tolerance": over if np.isfinite(over) else float("inf")}


def compare_text(precision: str, device: Any) -> dict[str, float]:
    """How far from the best the tokens of a cached search are, by the model over the whole row."""
    experiment = compose([*MODEL, dtype_of(precision)])
    mesh = build_mesh(experiment.mesh, [device])
    blueprint = make_blueprint(experiment.model, experiment.optim, 100, mesh)
    state = init_state(blueprint, 0)
    prompts = np.random.default_rng().integers(0, VOCAB, (ROWS, 9))
    decoder = Decoder(blueprint.merge, blueprint.model_config, Sampling(), mesh=mesh)
    with products(precision):
        made = decoder.generate(state["params"], Prompts(prompts.tolist()), max_new_tokens=NEW)
        rows = np.concatenate([prompts, np.array(made)], axis=1).astype(np.int32)
        with jax.set_mesh(mesh):
            whole = jax.jit(lambda params, rows: blueprint.merge(params)(rows))  # type: ignore[operator]
            logits = np.asarray(whole(state["params"], jax.device_put(rows, sharding_of(("batch", None), mesh))))
    said = logits[:, prompts.shape[1] - 1 : -1].astype(np.float64)
    chosen = np.take_along_axis(said, np.array(made)[:, :, None], axis=2)[:, :, 0]
    gap = float(np.max((said.max(axis=2) - chosen) / said.std(axis=2)))
    return {"gap": gap, "over_tolerance": gap / TEXT[precision]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--rehearse", action="store_true", help="the lines count for nothing")
    args = parser.parse_args()
    device, began, worst = jax.devices()[0], stamp(), 0.0
    works: list[tuple[str, Any]] = [(case.name, lambda case=case: compare(case, device)) for case in cases()]
    works[3:3] = [(f"text, {name}", lambda name=name: compare_text(name, device)) for name in TEXT]  # time may run out
    for name, work in works:
        if args.only not in name:
            continue
        facts = {"name": name, "platform": "cpu" if device.platform == "cpu" else "gpu", "device": device.device_kind}
        try:
            found = work()
        except ConfigError as error:  # a kernel that is not for this device
            print(f"{name:32} left out: {error}", flush=True)
            continue
        worst = max(worst, found["over_tolerance"])
        figures = {key: float(f"{value:.3g}") for key, value in found.items()}
        rehearsed = {"rehearsed": True} if args.rehearse else {}
        keep(args.out, "check", began | facts | found | {"figures": figures} | rehearsed)
        print(f"{name:32} {'ok' if found['over_tolerance'] <= 1 else 'WRONG'}  {figures}", flush=True)
    if worst > 1:
        raise SystemExit(f"bench_check: an error is {worst:.1f} times its tolerance")


if __name__ == "__main__":
    main()
