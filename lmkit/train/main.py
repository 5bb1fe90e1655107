"""`lmkit.train`: the main job, top to bottom."""

import dataclasses
import json
import math
import shlex
import sys
import time
from collections import Counter
from typing import Any

import jax

from lmkit import hosts
from lmkit.checkpoint import Checkpoints
from lmkit.config.base import UserError
from lmkit.config.checks import check_experiment
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.paths import cache_dir
from lmkit.config.saved import TOKENIZER_FILE, write_model, write_tokenizer
from lmkit.config.sections.data import OnCorrupt
from lmkit.console import Bar, PrepareProgress, console, duration
from lmkit.core.evaluation import headline, write_confusion
from lmkit.core.setup import Programs, setup_mesh, start_compiling, starting_state
from lmkit.core.state import Blueprint, State, make_blueprint
from lmkit.core.task import Task, prepare_task, settled
from lmkit.cost.hardware import memory_now
from lmkit.data.loader import TrainBatches, batch_shapes
from lmkit.data.store.places import hear_missing, tell_missing
from lmkit.files import private_files, shared_files
from lmkit.harness.tasks import Tasks, load_tasks
from lmkit.metrics import format_confusion
from lmkit.parallel.devices import devices_here, share_programs
from lmkit.redact import redact, redact_words
from lmkit.tracker import Trackers, build_trackers, check_trackers, forget_after, last_figures
from lmkit.train import receipt as facts
from lmkit.train.best import BestSoFar
from lmkit.train.evaluator import Evaluator
from lmkit.train.folds import cross_validate
from lmkit.train.measured import Clock, compare_run, measure_run, plan_run
from lmkit.train.meter import Meter
from lmkit.train.report import write_report
from lmkit.train.run_dir import RunDir, check_same
from lmkit.train.stop import Stop
from lmkit.weights import start_tokenizer

WAIT_SHARE = 0.02  # of the time, spent waiting for data, is worth a word


class DivergedError(UserError, ArithmeticError):
    """The loss or the gradient is no longer a number."""


def train(experiment: Experiment) -> int:
    """Runs an experiment to its last step, or until it is asked to stop. Returns the exit status.

    As one of many processes it does not raise: all end together, with one message.
    """
    with hosts.session(experiment.hosts, experiment.run, "train"), private_files(int(experiment.run.umask, 8)):
        console.quiet = not hosts.is_first()
        check_same(experiment)
        check_experiment(experiment)
        check_trackers(experiment.tracker)
        devices_here()  # what ends the process here (a flag that XLA does not know) leaves no run directory
        run_dir = hosts.share("run.dir", experiment.run.dir)  # that of '' has the time in its name
        experiment = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, dir=run_dir))
        return cross_validate(experiment, train_once) if experiment.train.folds else train_once(experiment)


def train_once(experiment: Experiment) -> int:
    """One run, in its directory."""
    with RunDir(experiment) as run:
        return _train(experiment, run)


def _train(experiment: Experiment, run: RunDir) -> int:
    began = time.perf_counter()
    eval_tasks = experiment.train.eval_tasks
    tasks = load_tasks(experiment.evaluate, eval_tasks, "train.eval_tasks") if eval_tasks else None
    mesh = setup_mesh(experiment)
    showing = PrepareProgress()
    with shared_files():
        tokenizer = start_tokenizer(experiment.tokenizer, experiment.init_from)
        whole = dataclasses.replace(experiment, tokenizer=tokenizer)
        task = hosts.first_where_shared(
            cache_dir(experiment.data.cache_dir), lambda: prepare_task(whole, showing), tell_missing, hear_missing
        )
    showing.finish()
    hosts.agree("the data", task.facts)
    run.check_data(task.facts)
    hosts.watchdog().arm()
    blueprint = make_blueprint(task.model, experiment.optim, experiment.train.steps, mesh, experiment.lora)
    run.begin(experiment)
    if hosts.is_first():
        write_model(run.path, blueprint.model_config)
        if task.tokenizer is not None:
            task.tokenizer.save(run.path / TOKENIZER_FILE)
            write_tokenizer(run.path, settled(tokenizer, task))
    shapes = batch_shapes(task.batches, experiment.train.batch_size, blueprint.mesh)
    programs = start_compiling(experiment, blueprint, shapes)
    checkpoints = Checkpoints(run.path / "checkpoints", experiment.checkpoint, blueprint.unsaved)
    state, first, notes = starting_state(experiment, blueprint, checkpoints, run.path)
    before, done = (run.read_json(name) for name in ("receipt.json", "summary.json"))
    idle = bool(before) and first >= experiment.train.steps  # what a finished run has written down stays
    if hosts.is_first():
        forget_after(run.path, first)
        if not idle:
            (run.path / "summary.json").unlink(missing_ok=True)  # of the part before, no longer true
    receipt = facts.describe(experiment, blueprint, task, run, first)
    facts.show_header(experiment, receipt, [*run.notes, *task.notes, *notes])
    loop = Loop(experiment, blueprint, task, checkpoints, run, receipt, programs.result(), tasks)
    run.write_json("receipt.json", before | {"history": receipt["history"]} if idle else receipt)
    share_programs(experiment.run)
    try:
        state, step = loop.run(state, first)
        with hosts.watchdog().pause("the last save"):
            checkpoints.close()
        stopped, wall = loop.stop.signal, time.perf_counter() - began
        summary = facts.summary(loop.latest, receipt, loop.meter, step, wall, stopped)
        if not idle:
            loop.compare(before)
        again = step == first == done.get("steps")
        run.write_json("summary.json", done if again else summary | loop.best.summary())
    except BaseException as error:
        hosts.report_failure(error)
        checkpoints.settle()
        raise
    finally:  # a run that breaks off has its report, too
        loop.trackers.close()
        share_programs(experiment.run)
        report = write_report(run.path) if hosts.is_first() else run.path
    facts.show_end(run.path, report, loop.latest, wall, _resume_command(run) if stopped else "")
    return loop.stop.status


class Loop:
    """The steps, with evaluation, saving and logging on their cadences."""

    def __init__(
        self, experiment: Experiment, blueprint: Blueprint, task: Task, checkpoints: Checkpoints, run: RunDir,
        receipt: dict[str, Any], programs: Programs, tasks: Tasks | None = None,
    ):  # fmt: skip
        self.experiment, self.blueprint, self.task, self.checkpoints = experiment, blueprint, task, checkpoints
        self.path, self.programs = run.path, programs
        hosts.agree(
            "the compiler's options", programs.options
        )  # of different programs the processes would wait forever
        facts.add_compiled(receipt, experiment.hardware, programs)
        receipt["planned"] = plan_run(experiment, blueprint) if hosts.is_first() else {}
        self.receipt, self.write_json, self.clock = receipt, run.write_json, Clock()
        train = experiment.train
        self.best = BestSoFar(experiment.checkpoint, train.patience, run.path)
        for step, value in self.best.values.items():
            checkpoints.judge(step, value)
        self.trackers = Trackers([])
        if hosts.is_first():
            self.trackers = build_trackers(experiment.tracker, run.path, redact(to_plain(experiment)))
        self.meter = Meter(train.batch_size * task.tokens_per_row)
        self.flops_per_token, self.peak = receipt["model"]["flops_per_token"], receipt["devices"]["peak_flops"]
        self.stop, self.watch = Stop(), hosts.watchdog()
        self.evaluator = Evaluator(experiment, blueprint, task, programs.evaluate, tasks, self.watch.progressed)
        self.latest = last_figures(run.path)  # of the part before, until there are newer ones
        self.said: set[str] = set()  # what was said of damaged files

    def run(self, state: State, first: int) -> tuple[State, int]:
        """Trains from step `first`; returns the state and the step reached."""
        train, save_every = self.experiment.train, self.experiment.checkpoint.save_every_steps
        batches = self.batches = TrainBatches(
            self.task.batches, self.experiment.data, first_step=first, steps=train.steps, batch_size=train.batch_size,
            mesh=self.blueprint.mesh,
        )  # fmt: skip
        step, pending = first, None
        self.meter.rate(first)
        with jax.set_mesh(self.blueprint.mesh), Bar(first, train.steps) as bar, self.stop:
            while step < train.steps and not self.best.exhausted and not self.stop.asked(step):
                batch = next(batches)
                self.watch.started(step + 1)
                state, metrics = self.programs.train(state, batch)
                self._log(bar, pending)  # waits for the step before, while the device runs this one
                step, pending = step + 1, (step + 1, metrics)
                bar.advance(step)
                last = step == train.steps
                evaluating = last or _due(step, train.eval_every_steps)
                saving = last or _due(step, save_every)
                if evaluating or saving:
                    pending = self._log(bar, pending)
                    self.clock.pause()
                    start = time.perf_counter()
                    if saving:  # first: an evaluation may be long, and what ends it must not cost these steps
                        self._save(step, state, last)
                    if evaluating:
                        with self.watch.pause(f"the evaluation at step {step}"):
                            self.checkpoints.judge(step, self._evaluate(bar, state, step, last))
                        if self.best.exhausted:
                            self._save(step, state, last=True)
                    self.meter.pause(time.perf_counter() - start)
            self._log(bar, pending)
            if self.best.exhausted:
                name, since = self.best.config.best_metric, self.best.since
                bar.say(f"stopped early: {name} has been best at step {self.best.step}, {since} evaluations ago")
            if self.stop.signal is not None:  # whenever it came, during an evaluation too
                self._save(step, state, last=True)
        return state, step

    def _save(self, step: int, state: State, last: bool) -> None:
        with self.watch.pause(f"the save at step {step}"):
            self.checkpoints.save(step, state, last=last)

    def _log(self, bar: Bar, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Waits for a step; writes its metrics on the logging cadence. Raises where they are no longer numbers."""
        if pending is None:
            return
        step, arrays = pending
        loss, grad_norm = float(arrays["loss"]), float(arrays["grad_norm"])
        self.watch.ended(step)
        self.clock.ended()
        if not math.isfinite(loss + grad_norm):  # at every step: what is saved next must be good
            raise DivergedError(
                f"the loss is {loss} and the gradient norm {grad_norm} at step {step}; "
                f"the checkpoints before it are good: lower optim.learning_rate, or raise optim.warmup_steps"
            )
        if not (_due(step, self.experiment.train.log_every_steps) or step in (1, self.experiment.train.steps)):
            return
        values = {f"train/{name}": float(value) for name, value in arrays.items() if name != "weight"}
        if (rate := self.meter.rate(step, self.batches.waited_sec)) > 0:
            values["train/tokens_per_sec"] = rate
            values["train/data_wait_share"] = self.meter.wait_share
            if self.peak:
                values["train/mfu"] = rate * self.flops_per_token / self.peak
        if lost := self._lost():
            values["train/lost_rows"] = sum(lost.values())
            for what in sorted(set(lost) - self.said):
                bar.say(f"rows are left out: {what}")
            self.said |= set(lost)
        self.trackers.log(step, values | memory_now())
        self.latest |= values
        mfu = f"  MFU {values['train/mfu']:.0%}" if "train/mfu" in values else ""
        wait = f"  waits for data {self.meter.wait_share:.0%}" if self.meter.wait_share > WAIT_SHARE else ""
        bar.figures(step, f"loss {loss:.3f}  {rate:,.0f} tok/s{mfu}{wait}")

    def _lost(self) -> dict[str, int]:
        """Rows that damaged files have cost all processes together, by what is wrong. All must call it."""
        if self.experiment.data.on_corrupt is not OnCorrupt.skip:
            return {}
        found = hosts.gather("lost rows", json.dumps(self.task.batches.lost()))
        return dict(sum((Counter(json.loads(one)) for one in found), Counter()))

    def _evaluate(self, bar: Bar, state: State, step: int, last: bool) -> float:
        """Says what an evaluation found; returns the value that says which step is best."""
        start = time.perf_counter()
        means, confusion, text, scores = self.evaluator(state, last)
        self.trackers.log(step, means)
        self.latest |= means
        bar.say(f"step {step}  held out: {headline(means)}  ({duration(time.perf_counter() - start)})")
        if scores:
            told = ", ".join(f"{name[11:]} {value:.4f}" for name, value in scores.items() if name[11:] != "sec")
            bar.say(f"step {step}  tasks: {told}  ({duration(scores['eval/tasks/sec'])})")
        if confusion is not None and hosts.is_first():
            write_confusion(self.path / "confusion.json", confusion, self.task.labels)
            if last:
                bar.say(format_confusion(confusion, self.task.labels))
        if text:
            self.trackers.text(step, "sample", text)
            shown = f"{self.experiment.train.sample_prompt}{text}"
            bar.say("\n".join(f"  | {line}" for line in shown.splitlines()))
        return self.best.see(step, means)

    def compare(self, before: dict[str, Any]) -> None:
        """Puts what was measured beside what was planned; the receipt of `before` keeps what it measured, if it did."""
        if hosts.is_first():
            planned, tokens = self.receipt["planned"], self.meter.tokens_per_step
            measured = measure_run(self.clock, planned, tokens, self.programs.memory_bytes)
            console.print(compare_run(planned, measured), style="dim", markup=False)
            if "reason" in measured and "step_sec" in before.get("measured", {}):
                planned, measured = before["planned"], before["measured"]
            self.write_json("receipt.json", self.receipt | {"planned": planned, "measured": measured})


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _resume_command(run: RunDir) -> str:
    words = redact_words(word for word in sys.argv[1:] if not word.startswith("run.dir="))
    return f"python -m lmkit.train {shlex.join([*words, f'run.dir={run.path}'])}"
