"""What labelled records cost: N lines of a text and a class, made into a store, then found there by a second start.

    python tools/bench_records.py 1e7 runs/records

Prints CPU seconds (with those of its processes), seconds, and the largest resident set of this process and of one of
its processes. The second start reads no record.
"""

import argparse
import os
import resource
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from lmkit.config.entry import compose
from lmkit.core.task import prepare_task

_FILES = 16
_WORDS = ["+experiment=bert_sotu", "objective=classify", "data=records", "tokenizer=bytes", "data.seq_len=8"]


def write(folder: Path, records: int) -> None:
    """The lines, of ten classes."""
    folder.mkdir(parents=True)
    for file in range(_FILES):
        with (folder / f"{file:02}.jsonl").open("w") as out:
            out.writelines(f'{{"text": "ab", "label": "c{n % 10}"}}\n' for n in range(file, records, _FILES))


def cpu_sec() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=float)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    if not (asked.folder / "in").is_dir():
        write(asked.folder / "in", int(asked.records))
    experiment = compose([*_WORDS, f"data.paths=[{asked.folder / 'in'}]", f"data.cache_dir={asked.folder / 'cache'}"])
    for what in ("first start", "second start"):
        cpu, began = cpu_sec(), time.perf_counter()
        task = prepare_task(experiment, lambda *_: None)
        (facts,) = task.facts.values()
        own, child = (
            resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(
            f"{what}: {cpu_sec() - cpu:.1f} CPU s, {time.perf_counter() - began:.1f} s, at most {own} MiB here and "
            f"{child} MiB in a process; {facts['count'] if 'count' in facts else int(asked.records):,} records",
            flush=True,
        )


if __name__ == "__main__":
    main()
