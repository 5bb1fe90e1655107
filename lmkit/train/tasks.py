"""lm-eval's tasks on the way: the live model, or its average, on the mesh that trains it."""

import time
from collections.abc import Callable

from lmkit.config.experiment import Experiment
from lmkit.core.state import Blueprint, State, evaluation_params
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.harness.tasks import Tasks, figures_of, live_model, run_tasks


def make_task_scorer(
    experiment: Experiment, blueprint: Blueprint, tokenizer: Tokenizer, tasks: Tasks, progressed: Callable[[], None]
) -> Callable[[State], dict[str, float]]:
    """score(state) -> eval/tasks/NAME/METRIC, and eval/tasks/sec. All processes must call it.

    `progressed()` is called on the way.
    """
    config, train = experiment.evaluate, experiment.train
    model = live_model(blueprint.merge, blueprint.model_config, blueprint.mesh, tokenizer, config.max_len, progressed)

    def score(state: State) -> dict[str, float]:
        began = time.perf_counter()
        model.params = evaluation_params(blueprint, state)
        found = run_tasks(model, tasks, config, limit=train.eval_limit, seed=experiment.run.seed, about={})
        model.params = None  # the state is donated to the next step
        for task in tasks.each.values():
            task._instances = None  # with their answers
        figures = {
            f"eval/tasks/{task}/{metric}": one.value
            for task, row in figures_of(found).items() for metric, one in row.items()
        }  # fmt: skip
        return figures | {"eval/tasks/sec": time.perf_counter() - began}

    return score
