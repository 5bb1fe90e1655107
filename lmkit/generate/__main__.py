"""`python -m lmkit.generate init_from=PATH generate.prompt="Once upon a time"`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Text from a model. init_from is a run, a checkpoint inside one, a Hugging Face folder or a .gguf file,
generate.prompt the text to continue (for an encoder-decoder, the source). What it writes is shown as it comes."""
READS = ("init_from", "generate.", "mesh.", "run.seed", "run.cpu_devices", "run.compile_cache", "tokenizer.path")

if __name__ == "__main__":
    sys.exit(run_verb("generate", "lmkit.generate.main:generate", ABOUT, reads=READS))
