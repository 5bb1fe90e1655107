"""Cleans addresses, a novel and e-mails with planted faults, and prints what was found, missed and wrongly removed.

    python tools/prepare_trial.py DATA [--number 200] [--kills 10] [--workers 2] [--out FOLDER]

DATA has sotu/*.txt, moby_dick/*.txt and spam/emails.jsonl.gz. The corpus is cleaned with one worker, with several, and
once more while the whole process group is killed again and again; all of it has to come out byte for byte the same.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepare_judge import judge
from prepare_plant import plant

from lmkit.config.sections.clean import CleanConfig, Pii, Rule
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.data.sources.listing import expand
from lmkit.data.sources.text import TEXT_SUFFIXES, TextSource
from lmkit.prepare.clean import clean

THRESHOLD = 0.8


def texts_of(data: Path) -> list[tuple[str, str]]:
    """(id, text): an address or an e-mail each, the novel by chapters."""
    rows = [(path.stem, path.read_text(errors="replace")) for path in sorted((data / "sotu").glob("*.txt"))]
    for path in sorted((data / "moby_dick").glob("*.txt")):
        chapters = re.split(r"\n(?=CHAPTER \d)", path.read_text(errors="replace"))
        rows += [(f"{path.stem}-{n}", text) for n, text in enumerate(chapters)]
    with gzip.open(data / "spam" / "emails.jsonl.gz", "rt") as lines:
        rows += [(f"mail-{row['id']}", f"{row['subject']}\n\n{row['text']}") for row in map(json.loads, lines)]
    return [(name, text) for name, text in rows if text.strip()]


def run(folder: Path, out: Path, workers: int, rules: list[str], executor: str = "local", tasks: int = 16) -> None:
    """Cleans folder/corpus into `out`, every other step on."""
    source = TextSource(expand(str(folder / "corpus"), TEXT_SUFFIXES), "text", 20, max_bad_share=0.2)
    quality = [Rule[rule] for rule in rules]
    settings = CleanConfig(
        normalise=True, languages=["en"], quality=quality, pii=list(Pii), exact=True, near=THRESHOLD,
        decontaminate=[str(folder / "eval.jsonl")],
    )  # fmt: skip
    clean(source, settings, PrepareConfig(executor=Executor[executor], workers=workers, tasks=tasks), out)


def killed(command: list[str], out: Path, kills: int, rng: random.Random, pause_sec: float = 1.0) -> int:
    """Runs a command that is killed, all its processes with it, after each bit of progress. Returns how many kills.

    It comes up to `pause_sec` after the progress: anywhere in a task. Small work wants a short one.
    """
    count = lambda: len(list(out.glob("work/stages/*/completions/*")))  # noqa: E731
    for kill in range(kills):
        before, process = count(), subprocess.Popen(command, start_new_session=True)
        while count() <= before + (rng.randrange(3) if pause_sec else 0) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * pause_sec)
        if process.poll() is not None:
            return kill
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    return kills


def digest(folder: Path) -> str:
    """Of the names and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(f"{f.relative_to(folder)}".encode() + f.read_bytes() for f in files)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--number", type=int, default=200, help="of each planted fault")
    parser.add_argument("--rules", nargs="*", default=[], choices=[rule.name for rule in Rule])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keeps everything there")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--run", nargs=2, metavar=("OUT", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args.data, Path(args.run[0]), int(args.run[1]), args.rules, tasks=args.tasks)
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.out or Path(tmp)
        texts = texts_of(args.data)
        truth = plant(texts, folder, args.number, THRESHOLD)
        size = sum(len(text.encode()) for _, text in texts)
        print(f"{len(texts):,} texts, {size / 1e6:.1f} MB")
        seconds, digests = {}, {}
        for workers in (1, args.workers):
            began = time.perf_counter()
            run(folder, folder / f"workers{workers}", workers, args.rules)
            seconds[workers], digests[workers] = time.perf_counter() - began, digest(folder / f"workers{workers}")
            print(f"{workers} workers: {seconds[workers]:.0f} s, {size / 1e6 / seconds[workers]:.2f} MB/s", flush=True)
        for name, value in judge(folder / "workers1", truth, THRESHOLD).items():
            share = f"  {value[0] / value[1]:.1%}" if isinstance(value, tuple) and value[1] else ""
            print(
                f"  {name:<26}{' of '.join(map(str, value)) if isinstance(value, tuple) else value}{share}", flush=True
            )
        same = len(set(digests.values())) == 1
        print(f"1 and {args.workers} workers: {'same bytes' if same else 'DIFFERENT'}", flush=True)
        if args.kills:
            out = folder / "killed"
            command = [
                sys.executable,
                __file__,
                str(folder),
                "--run",
                str(out),
                str(args.workers),
                "--rules",
                *args.rules,
            ]
            kills = killed(command, out, args.kills, random.Random(1))
            print(f"killed {kills} times: {'same bytes' if digest(out) == digests[1] else 'DIFFERENT'}")
    return None


if __name__ == "__main__":
    main()
