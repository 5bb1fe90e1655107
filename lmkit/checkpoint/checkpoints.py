"""The one place that knows Orbax."""

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as orbax_v1

from lmkit import hosts
from lmkit.checkpoint.manifest import PROMISED, check_together, is_finished, write_manifest
from lmkit.checkpoint.snapshot import Snapshot
from lmkit.config.base import ConfigError, UserError
from lmkit.config.sections.checkpoint import Best, CheckpointConfig
from lmkit.nn.tree import divide, flat, mismatch, union
from lmkit.parallel.devices import platform

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save there; failures are raised, too
ocp: Any = orbax_v1  # its annotations refuse what it documents: pathlib paths, its own policies


class CheckpointError(UserError, RuntimeError):
    """A checkpoint could not be written, or none of those there can be read."""


class Checkpoints:
    """The checkpoints of a run: `<folder>/<step>/`.

    A save returns at once and is committed in the background by a rename, so a kill leaves the one before. The
    newest `keep_last` and the `keep_best` with the best `best_metric` are kept. Keys of the state that `without` names
    are neither saved nor restored.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, without: tuple[str, ...] = ()):
        if ":/" in str(folder) and not Path(folder).is_absolute():  # pathlib folds the second slash of ://
            raise ConfigError(f"run.dir={folder}: checkpoints go to a local path (a mounted bucket will do)")
        self.folder, self.config, self.without = Path(folder).absolute(), config, without
        self._values: dict[int, float] = {}
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            keep.append(_KeepBest(config, self._values))
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            context=_context(config.compress),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint, ascending."""
        return [c.step for c in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any, value: float | None = None, *, last: bool = False) -> None:
        """Starts saving; `value` is that of best_metric. The state may be donated as soon as this returns.

        Waits for the save before it, and raises CheckpointError where that one failed. `last`: no step comes after
        this save, so on a CPU the state is not copied (lmkit/checkpoint/snapshot.py).
        """
        self.wait()
        _check_state(state)
        if step in self.steps():
            return
        state = {name: part for name, part in state.items() if name not in self.without}
        if platform() == "cpu" and not last:
            state = self._snapshot.of(state)
        metrics = None if value is None or math.isnan(value) else {self.config.best_metric: value}
        try:
            promised = {PROMISED: hosts.count()}
            response = self._checkpointer.save_async(step, state, metrics=metrics, custom_metadata=promised)
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}"
            ) from error
        self._thread = threading.Thread(target=self._finish, args=(step, response), daemon=True)
        self._thread.start()

    def judge(self, step: int, value: float) -> None:
        """Takes note of the value of best_metric at a step, for `keep_best`: it may come after the save."""
        self._values[step] = value

    def _finish(self, step: int, response: Any) -> None:
        try:
            if response is not None:
                response.result()
                write_manifest(self.folder / str(step), hosts.index(), hosts.count())
        except BaseException as error:
            error.add_note(f"step {step}")
            self._failure = error

    def wait(self) -> None:
        """Returns when everything is on disk. Raises CheckpointError where the last save failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"a checkpoint could not be written to {self.folder}: {failure}") from failure

    def settle(self) -> None:
        """Lets a save in hand end, well or badly: for a run that breaks off for another reason."""
        with contextlib.suppress(CheckpointError):
            self.wait()

    def restore(self, shapes: Any) -> tuple[Any, int, list[str]] | None:
        """The newest good checkpoint as (state, step, what was wrong with newer ones); None where there is none.

        One whose save was cut off before its manifests were whole is taken where no other is good.

        `shapes` are ShapeDtypeStructs with shardings: of any mesh, not only the one that saved.
        Raises CheckpointError where there are checkpoints and none is good.
        """
        _check_state(shapes)
        shapes = {name: part for name, part in shapes.items() if name not in self.without}
        skipped: list[str] = []
        whole, cut = json.loads(hosts.share("steps", json.dumps(_by_rank(self.folder, self.steps()))))
        for step in [*whole, *cut]:
            problem, state = self._check(step), None
            if not problem:
                try:
                    state = self._checkpointer.load(step, shapes)
                except Exception as error:
                    problem = f"cannot be read: {(error.__cause__ or error)!s:.300}"
                problem = next(filter(None, hosts.gather("loaded", problem)), "")
            if not problem:
                self._set_aside([later for later in self.steps() if later > step])
                lost = [f"checkpoint {later} is not used: its save was cut off" for later in cut if later > step]
                loose = [f"checkpoint {step} is used although its save was cut off"] if step in cut else []
                return state, step, [*skipped, *lost, *loose]
            skipped.append(f"checkpoint {step} is not used: {problem}")
        if skipped:
            raise CheckpointError(
                f"{self.folder} has no good checkpoint: {'; '.join(skipped)}. Start again with another run.dir="
            )
        return None

    def _check(self, step: int) -> str:
        """What is wrong with a checkpoint's files; of many processes each reads its share of them."""
        return check_together(self.folder / str(step)) if self.config.verify else ""

    def _set_aside(self, steps: list[int]) -> None:
        """Moves bad checkpoints out of the way of the steps that will be saved again; deletes nothing."""
        if steps and hosts.is_first():
            aside = self.folder.with_name("checkpoints_bad")
            aside.mkdir(exist_ok=True)
            for step in steps:
                (self.folder / str(step)).rename(aside / f"{step}-{time.strftime('%Y%m%d-%H%M%S')}")
        if steps:
            hosts.gather("set aside")
            self._checkpointer.reload()

    def close(self) -> None:
        """Waits and releases threads."""
        self.wait()
        self._checkpointer.close()


class _KeepBest:
    """Orbax's rule for `keep_best`: its own BestN knows only values that came with the save."""

    def __init__(self, config: CheckpointConfig, values: dict[int, float]):
        self._config, self._values = config, values

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        sign = 1 if self._config.best is Best.lowest else -1
        found = {one.step: (one.metrics or {}).get(self._config.best_metric, math.nan) for one in checkpoints}
        found |= {step: value for step, value in self._values.items() if step in found}
        ranked = sorted((step for step in found if not math.isnan(found[step])), key=lambda step: sign * found[step])
        best = set(ranked[: self._config.keep_best])
        return [one.step in best for one in checkpoints]


def _context(compress: bool, partial: bool = False) -> Any:
    options = ocp.options
    return ocp.Context(
        array_options=options.ArrayOptions(saving=options.ArrayOptions.Saving(use_compression=compress)),
        pytree_options=options.PyTreeOptions(loading=options.PyTreeOptions.Loading(partial_load=partial)),
    )


def _check_state(state: Any) -> None:
    if not isinstance(state, dict):
        raise ConfigError(f'the state is a {type(state).__name__}: give a dict such as {{"step": ..., "params": ...}}')


def load_params(path: str | Path, shapes: Any) -> tuple[Any, str]:
    """Only the parameters of a checkpoint, cast and sharded as `shapes` say, and where they came from.

    `path` is a run directory, its `checkpoints` folder, or one checkpoint. Raises ConfigError where there is none
    or its parameters do not fit, naming those that are missing or of another shape.
    """
    leaves = flat(shapes)
    place, saved, _ = find_checkpoint(path)
    resting = flat(saved.get("frozen", {}))
    if wrong := mismatch(resting | flat(saved["params"]), leaves, extra=False):
        raise ConfigError(
            f"init_from={place}: these are not the parameters of this model; {wrong}; give the configuration it was "
            f"trained with"
        )
    frozen = [name for name in leaves if name in resting]
    frozen_shapes, params = divide(shapes, frozen)
    return union(load_part(place, "params", params), load_part(place, "frozen", frozen_shapes)), str(place)


def find_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest good checkpoint at `path`, what is in it, and what is wrong with newer ones.

    What is in it: the state with things that have a shape for arrays.

    Of many processes each checks its share of the files, so all must call it. `path` as in `load_params`.
    Raises ConfigError where there is none.
    """
    path = Path(path).expanduser().absolute()
    folder = next((f for f in (path / "checkpoints", path) if f.is_dir() and _steps(f)), None)
    found = [str(step) for steps in _by_rank(folder, _steps(folder)) for step in steps] if folder else []
    candidates = [folder / step for step in json.loads(hosts.share("candidates", json.dumps(found)))] if folder else []
    candidates = candidates or ([path] if path.is_dir() else [])
    problems = []
    for candidate in candidates:
        if problem := check_together(candidate):
            problems.append(f"{candidate}: {problem}")
            continue
        try:
            saved: Any = ocp.metadata(candidate).metadata
            if "params" in saved:
                return candidate, saved, problems
            problems.append(f"{candidate}: there are no parameters in it")
        except Exception as error:
            problems.append(f"{candidate}: {(error.__cause__ or error)!s:.300}")
    raise ConfigError(f"init_from={path}: {'; '.join(problems) or 'no checkpoint there'}")


def load_part(place: Path, name: str, shapes: Any) -> Any:
    """What `shapes` name of one key of a checkpoint's state, cast and sharded as they say.

    Raises ConfigError where some of it is not there, or does not fit.
    """
    if not jax.tree.leaves(shapes):
        return {}
    try:
        with _context(compress=False, partial=True):
            loaded = ocp.load(place, {name: shapes})[name]
    except Exception as error:
        raise ConfigError(f"init_from={place}: {' '.join(str(error.__cause__ or error).split()):.300}") from error
    found, _ = jax.tree.flatten_with_path(loaded)
    lost = [
        jax.tree_util.keystr(way, simple=True, separator=".") for way, leaf in found if not hasattr(leaf, "__array__")
    ]
    if lost:
        raise ConfigError(f"init_from={place}: {name} has no {lost[0]} (and {len(lost) - 1} more that were asked for)")
    return loaded


def _by_rank(folder: Path, steps: Iterable[int]) -> tuple[list[int], list[int]]:
    """The steps whose saves are finished, and those whose saves were cut off, the newest of each first."""
    whole = {step: is_finished(folder / str(step)) for step in sorted(steps, reverse=True)}
    return [step for step in whole if whole[step]], [step for step in whole if not whole[step]]


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
