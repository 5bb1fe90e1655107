"""Held-out loss in nats a token and bits a byte."""

import math
from collections.abc import Callable, Iterable

import jax

from lmkit.data.prepare import Data
from lmkit.data.store import HELDOUT
from lmkit.objectives.build import Batch
from lmkit.objectives.sums import Sums
from lmkit.train.state import State

_IN_FLIGHT = 4  # batches dispatched before the first is waited for


def evaluate(
    step: Callable[[State, Batch], Sums], state: State, batches: Iterable[tuple[str, Batch]], data: Data
) -> dict[str, float]:
    """Means over all batches: eval/loss (nats per token), eval/bits_per_byte, eval/accuracy.

    With a mixture also eval/<part>/..., and the plain names are means by the mixture's weights. Bits per byte
    counts what it costs to code each document and its end, over the document's UTF-8 bytes.
    """
    totals: dict[str, list[Sums]] = {}
    for part, batch in batches:
        results = totals.setdefault(part, [])
        results.append(step(state, batch))
        if len(results) > _IN_FLIGHT:
            jax.block_until_ready(results[-_IN_FLIGHT])
    parts: dict[str, dict[str, float]] = {}
    for part, results in totals.items():
        sums = [sum(float(x) for x in column) for column in zip(*jax.device_get(results), strict=True)]
        total = Sums(*sums)  # type: ignore[arg-type]
        nats = total.nll / total.weight
        bytes_per_token = data.stores[part].bytes_per_token(HELDOUT)
        bits = nats / math.log(2) / bytes_per_token if bytes_per_token else math.nan
        parts[part] = {"loss": nats, "bits_per_byte": bits, "accuracy": total.correct / total.weight}  # type: ignore
    whole = sum(data.weights[part] for part in parts)
    means = {
        f"eval/{name}": sum(data.weights[part] / whole * values[name] for part, values in parts.items())
        for name in ("loss", "bits_per_byte", "accuracy")
    }
    if len(parts) > 1:
        means |= {f"eval/{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return means
