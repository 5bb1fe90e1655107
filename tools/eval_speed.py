"""Items a second of scoring short answers: packed slots, each item padded to a full row, and lm-eval's `hf` backend.

    python tools/eval_speed.py [--items 2000] [--rounds 3] [--batch-sizes 8,32,128] [--tiny]

Needs the extras `evals` and `parity`, and accelerate. One model of 30 M parameters, written as a Hugging Face folder
that both read; 2,000 items of 25 to 60 tokens, of which 1 to 8 are scored. Rounds alternate; what counts is the median
of CPU seconds, which a busy machine changes little. Compiling and loading are not counted. The padded form scores only
a part of the items, and so does the search for the best batch size of `hf`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx

from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.harness import score
from lmkit.harness.tasks import make_model
from lmkit.interop import save_folder
from lmkit.models import build_model
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model

MODEL: dict[str, Any] = {"num_layers": 8, "num_heads": 8, "embed_dim": 512, "gated": True, "max_seq_len": 1024,
                         "tie_embeddings": True}  # fmt: skip
TINY: dict[str, Any] = MODEL | {"num_layers": 1, "embed_dim": 64, "max_seq_len": 256}
PADDED_PART = 16  # one in so many items is scored padded to a full row


def write_model(folder: Path, sizes: dict[str, Any]) -> int:
    """A folder with a model of random weights and its tokenizer. Returns the number of parameters."""
    rng = np.random.default_rng(0)
    words = [" ".join(map(str, rng.integers(0, 5000, 200))) for _ in range(200)]
    tokenizer = train_bpe(words, TokenizerConfig(vocab_size=4096))
    tokenizer.save(folder.parent / "tokenizer.json")
    config = GPTConfig(**sizes, vocab_size=8192)
    params = nnx.to_pure_dict(nnx.split(build_model(config, nnx.Rngs(0)))[1])
    save_folder(folder, config, params, tokenizer=folder.parent / "tokenizer.json")
    special = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def make_requests(count: int) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    rng = np.random.default_rng(1)
    lengths = zip(rng.integers(24, 53, count), rng.integers(1, 9, count), strict=True)
    return [(("", ""), rng.integers(1, 4000, a).tolist(), rng.integers(1, 4000, b).tolist()) for a, b in lengths]


def cpu_seconds(run: Any) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", default="8,32,128", help="that hf is tried with; the best one counts")
    parser.add_argument("--tiny", action="store_true", help="a model of seconds, to try the tool")
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        count = write_model(folder, TINY if args.tiny else MODEL)
        mesh = build_mesh(MeshConfig(), jax.devices()[:1])
        config = EvaluateConfig(tasks=["x"])
        packed = make_model(open_model(str(folder)), TokenizerConfig(), config, mesh)
        padded = make_model(open_model(str(folder)), TokenizerConfig(), config, mesh)
        requests = make_requests(args.items)
        some = requests[::PADDED_PART]
        theirs, tuned = HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32"), {}
        for size in map(int, args.batch_sizes.split(",")):
            theirs.batch_size_per_gpu = size
            tuned[size], _ = cpu_seconds(lambda: theirs._loglikelihood_tokens(some, disable_tqdm=True))
        theirs.batch_size_per_gpu = min(tuned, key=lambda size: tuned[size])
        runs = {
            "packed": lambda: packed._loglikelihood_tokens(requests),
            "padded": lambda: in_full_rows(padded, some),
            "hf": lambda: theirs._loglikelihood_tokens(requests, disable_tqdm=True),
        }
        packed._loglikelihood_tokens(some)  # compiles
        in_full_rows(padded, some[:2])
        found = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                found[name].append(cpu_seconds(run))
    counts = {name: len(some) if name == "padded" else len(requests) for name in runs}
    rates = {name: counts[name] / statistics.median(cpu for cpu, _ in times) for name, times in found.items()}
    walls = {name: counts[name] / statistics.median(wall for _, wall in times) for name, times in found.items()}
    over = {name: rates["packed"] / rates[name] for name in ("padded", "hf")}
    print(json.dumps({
        "parameters": count, "items": args.items, "hf_batch_size": theirs.batch_size_per_gpu, "rounds": args.rounds,
        "items_per_cpu_sec": rates, "items_per_sec": walls, "packed_over": over,
    }, indent=1))  # fmt: skip


def in_full_rows(model: Any, requests: list) -> None:
    """Every item in a slot of the longest length, as without packing."""
    plain, score.slot_length = score.slot_length, lambda length, most: most
    try:
        model._loglikelihood_tokens(requests)
    finally:
        score.slot_length = plain


if __name__ == "__main__":
    main()
