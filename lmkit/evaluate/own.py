"""A model's own task: its figures on all that is held out, each with an interval."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from lmkit import metrics
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.experiment import Experiment
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.console import Progress
from lmkit.core.state import make_blueprint
from lmkit.core.task import Task
from lmkit.core.texts import can_score, make_writer
from lmkit.core.whole import Whole
from lmkit.evaluate.examples import Examples, make_step, score_examples
from lmkit.evaluate.figures import figures_of, figures_of_texts
from lmkit.evaluate.perturb import check_own, perturbed_task, stability
from lmkit.evaluate.subject import own_experiment, own_task
from lmkit.metrics.bootstrap import Figure
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import SavedModel


class Judged(NamedTuple):
    """A model's own task, scored."""

    task: Task
    examples: Examples
    figures: dict[str, Figure]
    notes: list[str]

    def item_scores(self) -> tuple[str, np.ndarray]:
        """What of each example two models are compared by, the higher the better: its name, float [N]."""
        columns, kind = self.examples.columns, self.task.kind
        if kind in WITH_CLASSES:
            right = (columns["predicted"] == columns["labels"]).astype(float)
            return "accuracy", right.reshape(len(right), -1).mean(axis=1)
        if kind is ObjectiveKind.regress:
            return "-squared error", -((columns["predicted"].astype(float) - columns["targets"]) ** 2)
        if kind is ObjectiveKind.contrastive:
            return "similarity", np.sum(columns["image"] * columns["text"], axis=1).astype(float)
        if "bytes" in columns:
            return "-bits per byte", -columns["nll"] / np.log(2) / np.maximum(columns["bytes"], 1)
        return "-loss", -columns["nll"] / columns["weight"]

    def confusion(self) -> np.ndarray | None:
        """int64 [C, C] of all examples that count; None without classes."""
        if self.task.kind not in WITH_CLASSES:
            return None
        columns, classes = self.examples.columns, len(self.task.labels)
        cells = (columns["labels"] * classes + columns["predicted"])[columns["weight"] > 0]
        return np.bincount(cells.astype(np.int64), minlength=classes**2).reshape(classes, classes)


def judge(experiment: Experiment, place: str, model: SavedModel) -> Judged:
    """Scores the model at `place` on its own task. Raises ConfigError where data and model do not go together."""
    own = own_experiment(dataclasses.replace(experiment, init_from=place), model)
    check_own(own)
    mesh, config = build_mesh(own.mesh), own.evaluate
    task, notes = own_task(own, model)
    variants = {kind: perturbed_task(task, kind, experiment.run.seed) for kind in config.perturb}
    shards = batch_shards(mesh.shape)
    rows = -(-(config.batch_size or own.train.batch_size) // shards) * shards
    blueprint = make_blueprint(task.model, own.optim, 1, mesh)
    params = model.params(mesh).params
    step = make_step(task.kind, blueprint.merge)
    how: dict[str, Any] = {"batch_size": rows, "limit": config.limit, "tell": Progress("scoring")}
    examples = score_examples(task, step, params, mesh, **how)
    figures = figures_of(task, examples, config, experiment.run.seed)
    for kind, variant in variants.items():
        columns = score_examples(variant, step, params, mesh, **how).columns
        changed = columns["predicted"] != examples.columns["predicted"]
        right = columns["predicted"] == columns["labels"]
        figures |= stability(kind, changed, right, examples.sizes, config, experiment.run.seed)
    if task.kind is ObjectiveKind.seq2seq and can_score(task):
        write = make_writer(blueprint, Whole(blueprint), task, batch_size=rows, beams=config.beams)
        state: dict[str, Any] = {"step": 0, "params": params, "ema": params}
        written = write(state, config.limit * rows)
        speech = bool(getattr(task.model, "num_mels", 0))
        figures |= figures_of_texts(written.references, written.texts, speech, config, experiment.run.seed)
        if not speech:
            notes.append(f"BLEU and chrF as sacrebleu has them: {metrics.translation_signature()}")
    return Judged(task, examples, figures, notes)
