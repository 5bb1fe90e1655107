"""`python -m lmkit.evaluate init_from=PATH`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """What a model is worth. init_from is a run, a checkpoint inside one, a Hugging Face folder, a hub id or a
.gguf file. Without evaluate.tasks a run is judged by its own figures on all that is held out; data= and data.paths=
give other data. With evaluate.tasks the tasks of lm-eval are scored (extra `evals`), offline."""
READS = (
    "init_from", "evaluate.", "data.", "objective.", "tokenizer.", "mesh.", "hosts.", "train.batch_size", "run.seed",
    "run.cpu_devices", "run.compile_cache", "run.umask",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb("evaluate", "lmkit.evaluate.main:evaluate", ABOUT, reads=READS, many=True))
