"""One family against transformers: the same weights and inputs, then logits, loss and every gradient.

Imported only where the extra `parity` is installed.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from interop.reference import VOCAB, make

from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.interop import load_params, read_config
from lmkit.models import build_model
from lmkit.objectives import build_objective

ROWS, SEQ = 2, 26
TOKENS = np.random.default_rng(0).integers(
    4, VOCAB - 1, (ROWS, SEQ)
)  # none of the special ones, on which models look for padding
TARGETS = np.random.default_rng(1).integers(0, VOCAB, (ROWS, SEQ))
LENGTHS = np.array([SEQ, 19])
REAL = (np.arange(SEQ) < LENGTHS[:, None]).astype(np.int32)  # 1 for a token, 0 for padding
TYPES = (np.arange(SEQ) >= np.array([[11], [7]])).astype(np.int32)
SOURCE = np.random.default_rng(2).integers(4, VOCAB - 1, (ROWS, 31))
SOURCE_REAL = (np.arange(31) < np.array([[31], [13]])).astype(np.int32)
LABELS = np.array([1, 0])


class Measured(NamedTuple):
    """Largest differences: absolute of the logits, relative of the loss and of the gradients of any parameter."""

    logits: float
    loss: float
    gradient: float
    their_logits: np.ndarray
    config: Any
    params: Any


class Case(NamedTuple):
    """What goes into either model, and what makes a loss of the result."""

    kind: ObjectiveKind
    batch: dict[str, np.ndarray]
    ours: Any  # model, batch -> logits
    theirs: dict[str, Any]


def _case(config: Any) -> Case:
    rng = np.random.default_rng(3)
    tokens = {"inputs": TOKENS, "targets": TARGETS, "weights": REAL.astype(np.float32), "segment_ids": REAL}
    mask = {"attention_mask": REAL}
    if isinstance(config, GPTConfig):
        return Case(ObjectiveKind.causal_lm, tokens, lambda m, b: m(b["inputs"], b["segment_ids"]),
                    {"input_ids": TOKENS, **mask})  # fmt: skip
    if isinstance(config, BERTConfig):
        theirs, batch = {"input_ids": TOKENS, **mask}, dict(tokens)
        if config.type_vocab_size > 1:
            batch["types"] = theirs["token_type_ids"] = TYPES
        if config.next_sentence_head:
            batch["next_sentence"] = LABELS
        return Case(ObjectiveKind.masked_lm, batch,
                    lambda m, b: m(b["inputs"], b["segment_ids"], None, b.get("types")), theirs)  # fmt: skip
    if isinstance(config, EncDecConfig):
        batch = {k: v for k, v in tokens.items() if k != "segment_ids"}
        if config.num_mels:
            frames = rng.normal(size=(ROWS, 2 * config.source_len, config.num_mels)).astype(np.float32)
            batch["source"], theirs = frames, {"input_features": frames.transpose(0, 2, 1)}
        else:
            batch |= {"source": SOURCE, "source_segment_ids": SOURCE_REAL}
            theirs = {"input_ids": SOURCE, "attention_mask": SOURCE_REAL}
        theirs["decoder_input_ids"] = TOKENS
        return Case(ObjectiveKind.seq2seq, batch,
                    lambda m, b: m(b["source"], b["inputs"], b.get("source_segment_ids")), theirs)  # fmt: skip
    if isinstance(config, ViTConfig):
        side = config.image_size
        images = rng.normal(size=(ROWS, side, side, config.num_channels)).astype(np.float32)
        return Case(ObjectiveKind.classify, {"images": images, "labels": LABELS}, lambda m, b: m(b["images"]),
                    {"pixel_values": images.transpose(0, 3, 1, 2)})  # fmt: skip
    assert isinstance(config, CLIPConfig)
    side = config.vision.image_size
    images = rng.normal(size=(ROWS, side, side, 3)).astype(np.float32)
    texts, last = TOKENS.copy(), np.array([SEQ - 1, 12])
    texts[np.arange(ROWS), last] = VOCAB - 1
    return Case(ObjectiveKind.contrastive, {"inputs": texts, "last": last, "images": images},
                lambda m, b: m(b["inputs"], b["last"], b["images"]),
                {"input_ids": texts, "pixel_values": images.transpose(0, 3, 1, 2)})  # fmt: skip


def _their_logits(case: Case, output: Any) -> torch.Tensor:
    names = {ObjectiveKind.contrastive: "logits_per_text"}
    name = names.get(case.kind, "logits")
    return getattr(output, name) if hasattr(output, name) else output.prediction_logits


def _their_loss(case: Case, output: Any) -> torch.Tensor:
    logits = _their_logits(case, output)
    if case.kind is ObjectiveKind.classify:
        return F.cross_entropy(logits, torch.tensor(LABELS))
    if case.kind is ObjectiveKind.contrastive:
        own = torch.arange(ROWS)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    weights = torch.tensor(case.batch["weights"])
    each = F.cross_entropy(logits.transpose(1, 2), torch.tensor(TARGETS), reduction="none")
    loss = (each * weights).sum() / weights.sum()
    if "next_sentence" in case.batch:
        loss = loss + F.cross_entropy(output.seq_relationship_logits, torch.tensor(LABELS))
    return loss


def real_positions(logits: np.ndarray) -> np.ndarray:
    """Logits without those of padding, which no one reads."""
    return logits if logits.ndim == 2 else logits[REAL.astype(bool)]


def measure(name: str, folder: Path) -> Measured:
    """Both models on the same inputs. The folder gets `weights/` and `gradients/`, written by transformers."""
    theirs = make(name)
    theirs.save_pretrained(folder / "weights")
    config = read_config(folder / "weights")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    shapes = nnx.to_pure_dict(abstract)
    params = load_params(folder / "weights", config, shapes)
    case = _case(config)

    output = theirs(**{k: torch.tensor(v) for k, v in case.theirs.items()})
    their_loss = _their_loss(case, output)
    their_loss.backward()
    expected = _their_logits(case, output).detach().numpy()

    batch = jax.tree.map(jnp.asarray, case.batch)
    objective = build_objective(ObjectiveConfig(kind=case.kind, chunk_tokens=16))

    def loss(params):
        sums, _ = objective(nnx.merge(graph, nnx.State(params)), batch, None)
        return sums.loss / sums.weight

    value, gradients = jax.value_and_grad(loss)(params)
    logits = np.asarray(case.ours(nnx.merge(graph, nnx.State(params)), batch))

    for parameter in theirs.parameters():  # their gradients go through the same table as their weights
        if not parameter.requires_grad:  # Whisper's fixed sines, which are checked
            continue
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(folder / "gradients")
    their_gradients = load_params(folder / "gradients", config, shapes)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(their_gradients))

    rotary = any(part.position is Position.rope for part in config.towers().values())

    def difference(path, a, b) -> float:
        if jax.tree_util.keystr(path, simple=True) == "bias":  # Marian's: a buffer to them, which has no gradient
            return 0.0
        if jax.tree_util.keystr(path, simple=True, separator=".").endswith(".k.bias") and not rotary:
            # a key's bias moves all scores of a query alike: its gradient is zero, theirs and ours only noise
            return float(jnp.abs(a).max() / scale)
        return float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-6 * scale))

    each = jax.tree.leaves(jax.tree.map_with_path(difference, gradients, their_gradients))
    return Measured(
        float(np.abs(real_positions(logits) - real_positions(expected)).max()),
        abs(float(value) / their_loss.item() - 1),
        max(each),
        expected,
        config,
        params,
    )


def their_logits(model: Any, config: Any) -> np.ndarray:
    """What a model of theirs makes of the same inputs."""
    case = _case(config)
    with torch.no_grad():
        return _their_logits(case, model(**{k: torch.tensor(v) for k, v in case.theirs.items()})).numpy()
