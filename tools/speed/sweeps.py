"""Which points a sweep has: one lmkit key through several values, or several keys together."""

from typing import NamedTuple

from speed.model import SHAPES

_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_NAMED = {
    "remat": [(f"remat {one}", [f"model.remat={one}"]) for one in ("none", "dots", "names", "full")],
    "scan": [(name, [f"model.scan_layers={on}"]) for name, on in (("scanned", "true"), ("unrolled", "false"))],
    "attention": [(f"attention {one}", [f"model.attention={one}"]) for one in ("xla", "cudnn")],
    "chunk": [(f"chunk {n or 'none'}", [f"objective.chunk_tokens={n}"]) for n in (0, 512, 1024, 2048, 4096, 8192)],
}
NAMES = ("model", "sequence", "batch", *_NAMED, "precision")


class Point(NamedTuple):
    """One row of a sweep: what differs from the run's own setting."""

    sweep: str
    name: str
    keys: list[str]
    config: str
    dtype: str


def points_of(sweep: str, config: str, dtype: str, tokens: int) -> list[Point]:
    """The points of a sweep: a name of NAMES, or KEY=v1,v2,...; KEY may be config or dtype, too.

    Args:
        tokens: a step, for the sweep over the sequence: each length has as many rows as make them up.

    Raises ValueError for what is neither, naming what there is.
    """
    key, _, text = sweep.partition("=")
    values = _split(text)
    if key in ("config", "model") and (values or not text):
        chosen = values or ["S", "G124", "350M", "G1B3"]
        if unknown := [one for one in chosen if one not in SHAPES]:
            raise ValueError(f"--sweep {sweep}: no configuration {unknown[0]}; there are {', '.join(SHAPES)}")
        return [Point("model", one, [], one, dtype) for one in chosen]
    if key in ("dtype", "precision"):
        return [Point("precision", one, *_precision(one, config)) for one in values or ["fp32", "bf16", "fp8"]]
    if key == "sequence":
        lengths = [int(one) for one in values] or [one for one in _LENGTHS if one <= tokens]
        rows = {length: max(1, tokens // length) for length in lengths}
        keys = {n: [f"data.seq_len={n}", f"train.batch_size={rows[n]}"] for n in lengths}
        return [Point("sequence", f"{n} x {rows[n]}", keys[n], config, dtype) for n in lengths]
    if key == "batch":
        own = SHAPES[config][-1]
        sizes = [int(one) for one in values] or sorted({max(1, own // 4), max(1, own // 2), own, 2 * own, 4 * own})
        return [Point("batch", f"batch {n}", [f"train.batch_size={n}"], config, dtype) for n in sizes]
    if sweep in _NAMED:
        return [Point(sweep, name, keys, config, dtype) for name, keys in _NAMED[sweep]]
    if not values or "." not in key:
        raise ValueError(f"--sweep {sweep}: write KEY=VALUE,VALUE with a key of lmkit, or one of {', '.join(NAMES)}")
    return [Point(key, f"{key}={one}", [f"{key}={one}"], config, dtype) for one in values]


def _precision(name: str, config: str) -> tuple[list[str], str, str]:
    """Keys, configuration and dtype: fp8 is bfloat16 with linear layers in float8."""
    return (["model.linear_dtype=float8"], config, "bf16") if name == "fp8" else ([], config, name)


def _split(text: str) -> list[str]:
    """At commas, but not inside brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return [value for value in values if value]
