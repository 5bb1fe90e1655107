"""How fast a token store is built and read: python tools/bench_data.py [--tokens 100e6] [--text FOLDER] [--s3].

Text of a folder (the Python library's, without --text) is repeated with noise, a letter in fifty replaced, until there
is enough of it. Then: the rate at which the store is built, tokenising included; the rate of random windows from the
warm store; of whole batches on the device; with --s3 the same windows from a server on loopback (moto). Peak memory
is that of the process that builds.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lmkit.config.entry import compose
from lmkit.data.batches.windows import Windows
from lmkit.data.loader import TrainBatches
from lmkit.data.prepare import prepare
from lmkit.data.store.tokens import TRAIN, TokenStore
from lmkit.parallel import build_mesh

SEQ_LEN, BATCH = 1024, 256
BYTES_PER_TOKEN = 4.2


def write_corpus(folder: Path, text: str, size: int) -> None:
    """.jsonl files of documents of about 4,000 characters, `size` characters in all, none like another."""
    rng, letters = np.random.default_rng(0), np.array(list("etaoinshrdlu "))
    base, done, number = np.array(list(text)), 0, 0
    while done < size:
        with (folder / f"{number:04}.jsonl").open("w") as out:
            for _ in range(4096):
                length = int(rng.integers(500, 7500))
                start = int(rng.integers(0, len(base) - length))
                piece = base[start : start + length].copy()
                noise = rng.random(length) < 0.02
                piece[noise] = rng.choice(letters, int(noise.sum()))
                out.write(json.dumps({"text": "".join(piece)}) + "\n")
                done += length
        number += 1


def build(corpus: Path, cache: Path) -> None:
    """In a process of its own; prints what it took as JSON."""
    words = [f"data.paths=[{corpus}]", "data=text_files", f"data.cache_dir={cache}", "run.name=bench"]
    experiment = compose([*words, f"data.seq_len={SEQ_LEN}"])
    began = None

    def progress(what: str, *_: int) -> None:
        nonlocal began
        if began is None and what == "tokenising":
            began = (time.perf_counter(), time.process_time())

    data = prepare(experiment.data, experiment.tokenizer, progress)
    assert began, "it was in the cache"
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    tokens = sum(split["tokens"] for split in data.stores["text"].meta["splits"].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": tokens, "wall": wall, "cpu": cpu, "peak": peak, "place": data.stores["text"].place}))


def read(place: str, rows: int, cache_bytes: int = 1 << 26) -> float:
    """Million tokens a second in random windows, the better half of five rounds."""
    store, rng = TokenStore(place, cache_bytes), np.random.default_rng(1)
    rates = []
    for _ in range(5):
        starts = rng.integers(0, store.num_tokens(TRAIN) - SEQ_LEN, rows)
        began = time.perf_counter()
        for first in range(0, rows, BATCH):
            store.windows(TRAIN, starts[first : first + BATCH], SEQ_LEN + 1)
        rates.append(rows * SEQ_LEN / (time.perf_counter() - began) / 1e6)
    return sorted(rates)[3]


def on_devices(corpus: Path, cache: Path, steps: int = 80) -> float:
    """Million tokens a second of whole batches, read ahead by threads and copied to the device."""
    words = [f"data.paths=[{corpus}]", "data=text_files", f"data.cache_dir={cache}", "run.name=bench"]
    experiment = compose([*words, f"data.seq_len={SEQ_LEN}"])
    data = prepare(experiment.data, experiment.tokenizer)
    windows = Windows(data.stores, data.weights, data.tokenizer, experiment.data, experiment.objective, seed=0)
    batches = TrainBatches(
        windows, experiment.data, first_step=0, steps=steps, batch_size=BATCH, mesh=build_mesh(experiment.mesh)
    )
    jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for one in batches:
        jax.block_until_ready(one)
    return (steps - 1) * BATCH * SEQ_LEN / (time.perf_counter() - start) / 1e6


def from_s3(place: str) -> float:
    """The same windows from moto's server, on loopback; it answers in Python, one request at a time."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": endpoint}
    import fsspec

    system = fsspec.filesystem("s3", endpoint_url=endpoint)
    system.mkdir("stores")
    system.put(place, "stores/one", recursive=True)
    rate = read("s3://stores/one", BATCH, 1 << 28)
    server.stop()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=100e6)
    parser.add_argument("--text", type=Path, help="a folder of .txt files to repeat")
    parser.add_argument("--s3", action="store_true", help="needs lmkit[remote] and moto[server]")
    parser.add_argument("--build", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        return build(*args.build)
    folder = args.text or Path(os.__file__).parent
    texts = [path.read_text(errors="replace") for path in sorted(folder.rglob("*.txt" if args.text else "*.py"))]
    with tempfile.TemporaryDirectory() as tmp:
        corpus, cache = Path(tmp) / "corpus", Path(tmp) / "cache"
        corpus.mkdir()
        write_corpus(corpus, "".join(texts)[: 20 << 20], int(args.tokens * BYTES_PER_TOKEN))
        command = [sys.executable, __file__, "--build", str(corpus), str(cache)]
        built = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        tokens = built["tokens"]
        rates = [f"{tokens / built[clock] / 1e6:.2f} M per {clock} second" for clock in ("wall", "cpu")]
        print(f"{tokens / 1e6:.1f} M tokens, built at {', '.join(rates)}, peak {built['peak'] / 2**20:.0f} MiB")
        print(f"random windows of {SEQ_LEN}: {read(built['place'], 20 * BATCH):.1f} M tokens/s")
        print(f"batches on the device: {on_devices(corpus, cache):.1f} M tokens/s")
        if args.s3:
            print(f"random windows from S3: {from_s3(built['place']):.2f} M tokens/s")


if __name__ == "__main__":
    main()
