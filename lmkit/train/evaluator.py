"""What a run learns of its model at an evaluation: held-out figures, texts, a sample, lm-eval's tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.experiment import Experiment
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.core.evaluation import evaluate
from lmkit.core.state import Blueprint, State
from lmkit.core.task import Task
from lmkit.core.texts import can_score, make_writer
from lmkit.data.loader import heldout_batches
from lmkit.harness.tasks import Tasks
from lmkit.train.sample import choose_sampler
from lmkit.train.tasks import make_task_scorer


class Evaluated(NamedTuple):
    """One evaluation."""

    means: dict[str, float]  # all figures by name
    confusion: np.ndarray | None
    text: str  # what the model wrote, after its prompt; "" for none
    scores: dict[str, float]  # of `means` those of lm-eval's tasks


class Evaluator:
    """Evaluates a state; `progressed()` is called on the way, for the watchdog. All processes must call it."""

    def __init__(
        self, experiment: Experiment, blueprint: Blueprint, task: Task, step: Callable[..., Any], tasks: Tasks | None,
        progressed: Callable[[], None],
    ):  # fmt: skip
        self._train, self._mesh, self._task, self._step = experiment.train, blueprint.mesh, task, step
        self._progressed = progressed
        self._sample, whole = choose_sampler(experiment, blueprint, task)
        self._write = self._score = None
        if task.kind is ObjectiveKind.seq2seq and can_score(task):
            sizes = {"batch_size": self._train.batch_size, "beams": self._train.eval_beams}
            self._write = make_writer(blueprint, whole, task, **sizes)
        if tasks is not None:
            assert task.tokenizer is not None
            self._score = make_task_scorer(experiment, blueprint, task.tokenizer, tasks, progressed)

    def __call__(self, state: State, last: bool) -> Evaluated:
        train, task = self._train, self._task
        limit = train.batches_at_end if last else train.eval_batches
        batches = heldout_batches(
            task.batches, list(task.weights), batch_size=train.batch_size, limit=limit, mesh=self._mesh
        )
        means, confusion = evaluate(self._step, state, batches, task, self._progressed)
        text = self._sample(state) if self._sample else ""
        whole = last and limit == 0
        if self._write and (whole or train.eval_texts):
            written = self._write(state, 0 if whole else train.eval_texts, self._progressed)
            means, text = means | written.figures, written.shown
        scores = self._score(state) if self._score else {}
        return Evaluated(means | scores, confusion, text, scores)
