"""`lmkit.train`: the main job, top to bottom."""

import math
import shlex
import sys
import time
from typing import Any

import jax

from lmkit.checkpoint import Checkpoints
from lmkit.config.base import UserError
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.saved import write_model
from lmkit.data.loader import heldout_batches, train_batches
from lmkit.data.prepare import Data, prepare
from lmkit.tracker import build_trackers, check_trackers, forget_after
from lmkit.train import facts
from lmkit.train.evaluation import evaluate
from lmkit.train.progress import Bar, Meter, PrepareProgress, duration, memory_now
from lmkit.train.report import write_report
from lmkit.train.run_dir import RunDir
from lmkit.train.sample import make_sampler
from lmkit.train.setup import (
    batch_sharding,
    check_heldout,
    check_task,
    compile_programs,
    setup_blueprint,
    setup_jax,
    setup_mesh,
    starting_state,
)
from lmkit.train.start import start_tokenizer
from lmkit.train.state import Blueprint, State
from lmkit.train.stop import Stop


class DivergedError(UserError, ArithmeticError):
    """The loss or the gradient is no longer a number."""


def train(experiment: Experiment) -> int:
    """Runs an experiment to its last step, or until it is asked to stop. Returns the exit status."""
    check_task(experiment)
    check_trackers(experiment.tracker)
    with RunDir(experiment) as run:
        return _train(experiment, run)


def _train(experiment: Experiment, run: RunDir) -> int:
    began = time.perf_counter()
    setup_jax(experiment)
    mesh = setup_mesh(experiment)
    showing = PrepareProgress()
    data = prepare(experiment.data, start_tokenizer(experiment.tokenizer, experiment.init_from), showing)
    showing.finish()
    check_heldout(data)
    blueprint = setup_blueprint(experiment, mesh, data.tokenizer)
    write_model(run.path / "model.yaml", blueprint.model_config)
    data.tokenizer.save(run.path / "tokenizer.json")
    checkpoints = Checkpoints(run.path / "checkpoints", experiment.checkpoint, blueprint.unsaved)
    state, first, notes = starting_state(experiment, blueprint, checkpoints, run.path)
    forget_after(run.path, first)
    receipt = facts.describe(experiment, blueprint, data, run, first)
    facts.show_header(experiment, receipt, [*run.notes, *notes])
    loop = Loop(experiment, blueprint, data, checkpoints, run, receipt)
    try:
        state, step = loop.run(state, first)
        checkpoints.close()
        stopped, wall = loop.stop.signal, time.perf_counter() - began
        run.write_json("summary.json", facts.summary(loop.latest, receipt, loop.meter, step, wall, stopped))
    except BaseException:
        checkpoints.settle()
        raise
    finally:  # a run that breaks off has its report, too
        loop.trackers.close()
        report = write_report(run.path)
    facts.show_end(run.path, report, loop.latest, wall, _resume_command(run) if stopped else "")
    return loop.stop.status


class Loop:
    """The steps, with evaluation, saving and logging on their cadences."""

    def __init__(
        self, experiment: Experiment, blueprint: Blueprint, data: Data, checkpoints: Checkpoints, run: RunDir,
        receipt: dict[str, Any],
    ):  # fmt: skip
        self.experiment, self.blueprint, self.data, self.checkpoints = experiment, blueprint, data, checkpoints
        self.programs = compile_programs(experiment, blueprint)
        facts.add_compiled(receipt, experiment.hardware, self.programs.memory_bytes)
        run.write_json("receipt.json", receipt)
        train, seq_len = experiment.train, experiment.data.seq_len
        self.trackers = build_trackers(experiment.tracker, run.path, to_plain(experiment))
        self.sample = make_sampler(
            blueprint, data.tokenizer, prompt=train.sample_prompt, num_tokens=train.sample_tokens,
            temperature=train.sample_temperature, seq_len=seq_len, seed=experiment.run.seed,
        )  # fmt: skip
        self.meter = Meter(train.batch_size * seq_len)
        self.flops_per_token, self.peak = receipt["model"]["flops_per_token"], receipt["devices"]["peak_flops"]
        self.stop = Stop()
        self.latest: dict[str, float] = {}

    def run(self, state: State, first: int) -> tuple[State, int]:
        """Trains from step `first`; returns the state and the step reached."""
        train, save_every = self.experiment.train, self.experiment.checkpoint.save_every_steps
        batches = train_batches(
            self.data, self.experiment.data, seed=self.experiment.run.seed, first_step=first, steps=train.steps,
            batch_size=train.batch_size, sharding=batch_sharding(self.blueprint),
        )  # fmt: skip
        step, pending = first, None
        self.meter.rate(first)
        with jax.set_mesh(self.blueprint.mesh), Bar(first, train.steps) as bar, self.stop:
            while step < train.steps and self.stop.signal is None:
                state, metrics = self.programs.train(state, next(batches))
                self._log(bar, pending)  # waits for the step before, while the device runs this one
                step, pending = step + 1, (step + 1, metrics)
                bar.advance(step)
                last = step == train.steps
                evaluating = last or _due(step, train.eval_every_steps)
                saving = last or _due(step, save_every)
                if evaluating or saving:
                    pending = self._log(bar, pending)
                    start = time.perf_counter()
                    loss = self._evaluate(bar, state, step, last) if evaluating else None
                    if saving:
                        self.checkpoints.save(step, state, loss)
                    self.meter.pause(time.perf_counter() - start)
            self._log(bar, pending)
            if self.stop.signal is not None:  # whenever it came, during an evaluation too
                self.checkpoints.save(step, state)
        return state, step

    def _log(self, bar: Bar, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Waits for a step; writes its metrics on the logging cadence. Raises where they are no longer numbers."""
        if pending is None:
            return
        step, arrays = pending
        loss, grad_norm = float(arrays["loss"]), float(arrays["grad_norm"])
        if not math.isfinite(loss + grad_norm):  # at every step: what is saved next must be good
            raise DivergedError(
                f"the loss is {loss} and the gradient norm {grad_norm} at step {step}; "
                f"the checkpoints before it are good: lower optim.learning_rate, or raise optim.warmup_steps"
            )
        if not (_due(step, self.experiment.train.log_every_steps) or step in (1, self.experiment.train.steps)):
            return
        values = {f"train/{name}": float(value) for name, value in arrays.items() if name != "weight"}
        if (rate := self.meter.rate(step)) > 0:
            values["train/tokens_per_sec"] = rate
            if self.peak:
                values["train/mfu"] = rate * self.flops_per_token / self.peak
        self.trackers.log(step, values | memory_now())
        self.latest |= values
        mfu = f"  MFU {values['train/mfu']:.0%}" if "train/mfu" in values else ""
        bar.figures(step, f"loss {loss:.3f}  {rate:,.0f} tok/s{mfu}")

    def _evaluate(self, bar: Bar, state: State, step: int, last: bool) -> float:
        """Held-out figures and a sample; returns eval/loss. The last one is over all held-out text."""
        start = time.perf_counter()
        train = self.experiment.train
        batches = heldout_batches(
            self.data, self.experiment.data, batch_size=train.batch_size, limit=0 if last else train.eval_batches,
            sharding=batch_sharding(self.blueprint),
        )  # fmt: skip
        means = evaluate(self.programs.evaluate, state, batches, self.data)
        self.trackers.log(step, means)
        self.latest |= means
        text = self.sample(state) if train.sample_tokens else ""
        bar.say(
            f"step {step}  held out: {means['eval/loss']:.4f} nats/token, {means['eval/bits_per_byte']:.4f} bits/byte"
            f"  ({duration(time.perf_counter() - start)})"
        )
        if text:
            self.trackers.text(step, "sample", text)
            bar.say("\n".join(f"  | {line}" for line in (train.sample_prompt + text).splitlines()))
        return means["eval/loss"]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _resume_command(run: RunDir) -> str:
    words = [word for word in sys.argv[1:] if not word.startswith("run.dir=")]
    return f"python -m lmkit.train {shlex.join(words)} run.dir={shlex.quote(str(run.path))}"
