"""`python -m lmkit.show store=PATH step=1234 row=5`."""

import importlib
import os
import sys
import traceback

from lmkit.config.base import ConfigError, nearest
from lmkit.config.entry import explain
from lmkit.config.entry.streams import showing
from lmkit.config.sections.hosts import USER_ERROR

HELP = """Print what a row of a step holds: its text by documents, where it comes from, and what it weighs.

usage: python -m lmkit.show store=RUN step=STEP row=ROW [section.key=value ...]
       python -m lmkit.show store=STORE step=STEP row=ROW [data.seq_len=... train.batch_size=... run.seed=...]
       python -m lmkit.show +experiment=NAME step=STEP row=ROW [group=option ...] [key=value ...]

store=  the directory of a run, whose configuration says all the rest, or of a finished token store; left out, the data
        of the experiment, which are made where they are not in the cache
step=   number of the step, from 0, as the data count: what a run logs as step 1 learns from step=0
row=    row of the global batch, from 0
json=true prints one JSON object instead: the same, with the texts exactly as they are

All keys: python -m lmkit.train --help"""
OWN = ("store", "step", "row", "json")


def parse(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The tool's own words, and the rest. Raises ConfigError for one that is missing or no number."""
    own = {name: word[len(name) + 1 :] for word in argv for name in OWN if word.startswith(f"{name}=")}
    rest = [word for word in argv if not word.startswith(tuple(f"{name}=" for name in OWN))]
    for word in rest:
        if "=" not in word:
            raise ConfigError(f"{word!r}: a word is KEY=VALUE.{nearest(word, OWN)} See --help")
    for name in ("step", "row"):
        if not own.get(name, "").isdecimal():
            words = [word.partition("=")[0] for word in rest]
            near = next((f" Is {word!r} meant to be {name!r}?" for word in words if nearest(name, [word])), "")
            raise ConfigError(f"{name}={own.get(name, '')}: give the number of the {name}, from 0: {name}=0.{near}")
    if not own.get("store") and not rest:
        raise ConfigError("neither store=PATH of a run or a token store, nor +experiment=NAME: see --help")
    return own, rest


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 for what the user can mend, told in one line."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    try:
        own, rest = parse(words)
        module = importlib.import_module("lmkit.show.main")
        module.show(own.get("store", ""), int(own["step"]), int(own["row"]), rest, as_json=own.get("json") == "true")
        return 0
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("LMKIT_DEBUG") == "1":
            traceback.print_exc()
        if message is None:
            return 1
        print(f"lmkit.show: {message}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    with showing():
        sys.exit(main())
