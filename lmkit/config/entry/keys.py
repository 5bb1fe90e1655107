"""Every key of an experiment, and what `--help` says of it."""

from typing import Any

from lmkit.config.base import keys_of
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of
from lmkit.config.sections.families import MODEL_SCHEMAS

GROUPS = ("model", "data", "tokenizer", "objective", "optim", "mesh", "checkpoint", "tracker", "hardware")


TOWERS = {"model.text.": "gpt", "model.vision.": "vit"}


def all_keys_of(schema: type) -> list[tuple[str, str, Any, str]]:
    """Every key of an experiment, with each model family's own."""
    rows = [row for row in keys_of(schema) if not row[0].startswith("model.")]
    seen: set[str] = set()
    for family in MODEL_SCHEMAS.values():
        rows += [row for row in keys_of(family, "model.") if not (row[0] in seen or seen.add(row[0]))]
    return rows


def help_text(verb: str, about: str, reads: tuple[str, ...] = ()) -> str:
    """Usage, experiments, groups with their options, and every key with its documentation; of `reads` those alone."""
    if reads:
        lines = [about, "", f"usage: python -m lmkit.{verb} init_from=PATH [key=value ...]", ""]
        return "\n".join([*lines, "keys (name: type = default):", *_key_lines(reads)])
    lines = [
        about,
        "",
        f"usage: python -m lmkit.{verb} +experiment=NAME [group=option ...] [key=value ...]",
        "       --cfg job prints the whole configuration; --multirun key=a,b runs a sweep;",
        "       --config-dir DIR adds a folder of your own experiments, models, ...",
        "",
        f"experiments: {', '.join(options_of('experiment'))}",
        "",
        "groups:",
        *(f"  {group:<11} {', '.join(options_of(group))}" for group in GROUPS),
        "",
        "keys (name: type = default):",
        *_key_lines(("",)),
    ]
    lines += [f"  {tower}KEY\n      a tower of clip: the keys of the family {name}" for tower, name in TOWERS.items()]
    return "\n".join(lines)


def _key_lines(starts: tuple[str, ...]) -> list[str]:
    lines = []
    for name, kind, default, doc in all_keys_of(Experiment):
        if name.startswith(starts) and not name.startswith(tuple(TOWERS)):
            shown = [getattr(d, "name", d) for d in default] if isinstance(default, list) else default
            lines.append(f"  {name}: {kind} = {shown!r}\n      {doc}")
    return lines
