"""What the loop of lmkit.train spends on anything but steps: waiting for input, logging, saving.

    python tools/bench_idle.py                          # gpt2_124m's state, short rows, so that a CPU gets through it
    python tools/bench_idle.py --keys data.seq_len=1024 train.batch_size=32          # on a GPU

It runs the real loop on text of its own, with clocks around what it calls. Shares are of the time of the steps; the
device works meanwhile, so they bound its idle time from above. A save blocks the loop for as long as the next step
ends later than a step usually does: the call, and what the background's copying takes from the step. Appends one JSON
line to experiments/benchmarks/idle.jsonl.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from speed.records import BENCHMARKS, Record, keep, stamp

from lmkit.config.entry import compose
from lmkit.config.entry.process import prefer_huge_pages
from lmkit.config.experiment import Experiment
from lmkit.parallel.devices import platform, setup_jax
from lmkit.tracker import read_rows
from lmkit.train import main as loop

_WARM = 3  # steps that are left out


class Watch:
    """Seconds by name, and when each step ended."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {"input": [], "logging": [], "save": []}
        self.ended: list[float] = []
        self.saved: list[int] = []  # how many steps had ended

    def around(self, name: str, call: Callable) -> Callable:
        """The same call, with a clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[name].append(time.perf_counter() - start)
                if name == "save":
                    self.saved.append(len(self.ended))

        return timed

    def install(self) -> None:
        """Puts the clocks around what the loop calls."""
        watch, ended = self, loop.Clock.ended

        def note(clock: loop.Clock) -> None:
            ended(clock)
            watch.ended.append(time.perf_counter())

        setattr(loop.Clock, ended.__name__, note)
        loop.TrainBatches.__next__ = self.around("input", loop.TrainBatches.__next__)
        loop.Checkpoints.save = self.around("save", loop.Checkpoints.save)
        for owner, name in ((loop.Trackers, "log"), (loop.Bar, "figures"), (loop, "memory_now")):
            setattr(owner, name, self.around("logging", getattr(owner, name)))

    def figures(self) -> Record:
        """Shares of the time of the steps, and what saves cost. Raises SystemExit where steps were too few."""
        gaps = [after - before for before, after in zip(self.ended, self.ended[1:], strict=False)]
        after_save = {number - 1 for number in self.saved if number}
        plain = [gap for number, gap in enumerate(gaps) if number >= _WARM and number not in after_save]
        saves = [gaps[number] for number in sorted(after_save) if number < len(gaps)]
        if len(plain) < _WARM or not saves:
            raise SystemExit("bench_idle: too few steps: raise --steps, or lower --every")
        step, steps = statistics.median(plain), len(self.ended)
        blocks = [gap - step for gap in saves]
        return {
            "step_s": step, "steps": steps,
            "input_share": sum(self.spent["input"][_WARM:]) / (steps - _WARM) / step,
            "logging_share": sum(self.spent["logging"]) / steps / step,
            "save_call_s": statistics.median(self.spent["save"][: len(saves)]),
            "save_blocks_s": statistics.median(blocks), "save_blocks_most_s": max(blocks), "saves": len(saves),
        }  # fmt: skip


def experiment_of(args: argparse.Namespace, folder: Path) -> Experiment:
    """A run in a folder, on text that is written there."""
    rng, text = random.Random(0), folder / "text"
    words = [f"word{number}" for number in range(2000)]
    text.mkdir()
    for number in range(64):
        (text / f"{number:02}.txt").write_text(" ".join(rng.choices(words, k=args.words)))
    return compose(f"""run.name=idle run.dir={folder / "run"} data=text_files data.paths=[{text}] tokenizer=bytes
        data.cache_dir={folder / "cache"} data.seq_len=64 model={args.model} model.vocab_size=50304 train.batch_size=4
        train.steps={args.steps} train.eval_every_steps=0 train.eval_batches=1 train.sample_tokens=0
        checkpoint.save_every_steps={args.every} checkpoint.keep_last=1 checkpoint.keep_best=0 tracker=tensorboard
        optim.warmup_steps=1
        """.split() + args.keys)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2_124m", help="a preset in conf/model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=12, help="steps between saves")
    parser.add_argument("--words", type=int, default=3000, help="in each of 64 texts")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--folder", type=Path, help="for the run and its checkpoints; a temporary one without")
    parser.add_argument("--rehearse", action="store_true", help="the line counts for nothing")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        experiment = experiment_of(args, Path(folder))
        setup_jax(experiment.run)
        watch = Watch()
        watch.install()
        if status := loop.train(experiment):
            raise SystemExit(status)
        rows = [row for row in read_rows(Path(folder) / "run" / "metrics.jsonl") if "train/data_wait_share" in row]
    found = watch.figures()
    found["data_wait_share"] = statistics.median(row["train/data_wait_share"] for row in rows[1:] or rows)
    device = jax.devices()[0]
    record = stamp() | {
        "name": args.model, "model": args.model, "platform": platform(), "keys": args.keys,
        "device": None if platform() == "cpu" else device.device_kind, **found,
        "figures": {name: round(value, 5) for name, value in found.items()},
    }  # fmt: skip
    keep(args.out, "idle", record | ({"rehearsed": True} if args.rehearse else {}))
    shares = f"waiting for input {found['input_share']:.3%} of a step, logging {found['logging_share']:.3%}"
    blocks = f"a save blocks for {found['save_blocks_s']:.3f} s, {found['save_blocks_most_s']:.3f} at most"
    print(f"\n{shares} (goal: < 1 %)\n{blocks} (goal: < 0.5 s)")


if __name__ == "__main__":
    prefer_huge_pages()  # as lmkit.train does
    main()
