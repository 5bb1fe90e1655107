"""`python -m lmkit.train +experiment=gpt_small`."""

import sys

from lmkit.config.entry import run_verb
from lmkit.config.entry.process import prefer_huge_pages

ABOUT = """Train a model. Prepares data and tokenizer when they are missing, evaluates on held-out text, saves
checkpoints, writes metrics and a report. Ctrl-C saves and stops; run.dir= of an existing run resumes it."""

if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(run_verb("train", "lmkit.train.main:train", ABOUT, many=True))
