"""`python -m lmkit.prepare +experiment=gpt_small`, and `python -m lmkit.prepare --check STORE`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Raw text, images or sounds to the store that `train` reads with the same words: cleaned where data.clean
says so, tokenised, checked. prepare.executor sends the work to a cluster; --check STORE (prepare.check=STORE) looks at
each file of a finished store."""


def words_of(argv: list[str]) -> list[str]:
    """`--check STORE` as the key that it is."""
    if "--check" not in argv[:-1]:
        return argv
    at = argv.index("--check")
    return [*argv[:at], f"prepare.check={argv[at + 1]}", *argv[at + 2 :]]


if __name__ == "__main__":
    sys.exit(run_verb("prepare", "lmkit.prepare.main:prepare", ABOUT, words_of(sys.argv[1:])))
