"""`python -m lmkit.export init_from=RUN export.folder=OUT`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Write a run, a checkpoint or any other parameters as a folder: weights (the moving average where
there is one, LoRA folded in), configuration, tokenizer, a model card (README.md). In the Hugging Face layout,
which transformers' from_pretrained reads; as StableHLO functions, which jax alone calls; or as a GGUF file,
which llama.cpp loads.

usage: python -m lmkit.export init_from=RUN export.folder=OUT [export.dtype=bfloat16]
       python -m lmkit.export init_from=RUN export.folder=OUT export.format=stablehlo
       python -m lmkit.export init_from=RUN export.folder=OUT export.format=gguf [export.dtype=q8_0]"""

READS = ("init_from", "export.")

if __name__ == "__main__":
    sys.exit(run_verb("export", "lmkit.export.main:export", ABOUT, reads=READS))
