"""Random batches that show mistakes: uneven weights, rows that weigh nothing, packed documents, padding."""

from typing import Any

import numpy as np

from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, ViTConfig
from lmkit.config.sections.objective import ObjectiveKind

Arrays = dict[str, np.ndarray]


def make_inputs(experiment: Experiment, model: Any) -> Arrays:
    """The arrays of one global batch of the experiment's objective."""
    rng, kind = np.random.default_rng(experiment.run.seed), experiment.objective.kind
    rows, seq = experiment.train.batch_size, experiment.data.seq_len
    if kind is ObjectiveKind.contrastive:
        assert isinstance(model, CLIPConfig)
        last = rng.integers(1, seq, rows, dtype=np.int32)
        return _images(rng, rows, model.vision) | {"inputs": _tokens(rng, rows, seq, model.text), "last": last}
    if isinstance(model, EncDecConfig):
        return _sources(rng, rows, seq, model) | _text(rng, rows, seq, model)
    if kind in (ObjectiveKind.causal_lm, ObjectiveKind.chat):
        return _text(rng, rows, seq, model)
    if kind is ObjectiveKind.masked_lm:
        return _masked(rng, rows, seq, model, experiment.objective.next_sentence)
    what = _images(rng, rows, model) if isinstance(model, ViTConfig) else _padded(rng, rows, seq, model)
    shape = (rows, seq) if kind is ObjectiveKind.classify_tokens else (rows,)
    if kind is ObjectiveKind.regress:
        return what | {"targets": rng.normal(size=shape).astype(np.float32), "weights": _weights(rng, shape)}
    labels = rng.integers(0, model.num_classes, shape, dtype=np.int32)
    return what | {"labels": labels, "weights": _weights(rng, shape)}


def _tokens(rng: np.random.Generator, rows: int, seq: int, model: Any) -> np.ndarray:
    return rng.integers(0, model.vocab_size, (rows, seq), dtype=np.int32)


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of very different sums a row: a mean of the devices' means is then not the mean."""
    weights = rng.integers(0, 3, shape).astype(np.float32)
    scale = np.linspace(0, 2, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return weights * scale + (scale > 1.5)


def _text(rng: np.random.Generator, rows: int, seq: int, model: Any) -> Arrays:
    segments = np.cumsum(rng.random((rows, seq)) < 3 / seq, axis=1).astype(np.int32)
    names = ("inputs", "targets")
    batch = {name: _tokens(rng, rows, seq, model) for name in names} | {"weights": _weights(rng, (rows, seq))}
    return batch if isinstance(model, EncDecConfig) else batch | {"segment_ids": segments}


def _padded(rng: np.random.Generator, rows: int, seq: int, model: Any) -> Arrays:
    length = rng.integers(seq // 4, seq + 1, rows)
    batch = {"inputs": _tokens(rng, rows, seq, model)}
    batch["segment_ids"] = (np.arange(seq) < length[:, None]).astype(np.int32)
    if isinstance(model, BERTConfig) and model.type_vocab_size > 1:
        batch["types"] = (np.arange(seq) >= length[:, None] // 2).astype(np.int32)
    return batch


def _masked(rng: np.random.Generator, rows: int, seq: int, model: Any, pairs: bool) -> Arrays:
    positions = seq // 8
    batch = _padded(rng, rows, seq, model)
    batch["masked_positions"] = np.argsort(rng.random((rows, seq)), axis=1)[:, :positions].astype(np.int32)
    batch["targets"] = _tokens(rng, rows, positions, model)
    batch["weights"] = _weights(rng, (rows, positions))
    return batch | ({"next_sentence": rng.integers(0, 2, rows, dtype=np.int32)} if pairs else {})


def _sources(rng: np.random.Generator, rows: int, seq: int, model: EncDecConfig) -> Arrays:
    length = rng.integers(seq // 4, seq + 1, rows)
    inside = (np.arange(seq) < length[:, None]).astype(np.int32)
    if model.num_mels:
        return {"source": rng.normal(size=(rows, 2 * seq, model.num_mels)).astype(np.float32),
                "source_segment_ids": inside}  # fmt: skip
    return {"source": _tokens(rng, rows, seq, model), "source_segment_ids": inside}


def _images(rng: np.random.Generator, rows: int, model: ViTConfig) -> Arrays:
    shape = (rows, model.image_size, model.image_size, model.num_channels)
    return {"images": rng.normal(size=shape).astype(np.float32)}
