"""`python -m lmkit.serve init_from=PATH`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Serve a model with OpenAI's HTTP API. init_from is a run, a checkpoint inside one, a Hugging Face folder or a
.gguf file: decoders answer /v1/completions and /v1/chat/completions, encoders /v1/embeddings and /v1/classify,
classifiers of images /v1/classify, speech models /v1/audio/transcriptions.

usage: python -m lmkit.serve init_from=PATH [serve.port=8000] [mesh.tensor=4] [serve.slots=64]"""
READS = ("init_from", "serve.", "mesh.", "run.seed", "run.cpu_devices", "run.compile_cache", "tokenizer.path",
         "tokenizer.chat_template")  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb("serve", "lmkit.serve.main:serve", ABOUT, reads=READS))
