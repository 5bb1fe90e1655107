"""Texts that an encoder-decoder writes for held-out sources, and what they are worth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lmkit import metrics
from lmkit.config.sections.families import EncDecConfig
from lmkit.core.state import Blueprint, State
from lmkit.core.task import Task
from lmkit.core.whole import Whole
from lmkit.data.batches.records import Records
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling


class Written(NamedTuple):
    """What was written: figures by name, a few texts to look at, and all references and texts."""

    figures: dict[str, float]
    shown: str
    references: list[str]
    texts: list[str]


def can_score(task: Task) -> bool:
    """Whether the package is installed that tells what such texts are worth."""
    return metrics.available("speech" if getattr(task.model, "num_mels", 0) else "translation")


def make_writer(
    blueprint: Blueprint, whole: Whole, task: Task, *, batch_size: int, beams: int, shown: int = 3
) -> Callable[..., Written]:
    """write(state, limit, progressed) -> BLEU and chrF of translations, or WER and CER of speech, and the first texts.

    The likeliest token is taken each time, or the best of `beams`; `limit` texts of each part of the mixture, spread
    over what is held out, 0 for all. `progressed()` is called after every batch.
    """
    batches, tokenizer, config = task.batches, task.tokenizer, task.model
    assert isinstance(batches, Records)
    assert isinstance(config, EncDecConfig)
    assert tokenizer is not None
    decoder = Decoder(
        blueprint.merge, config, Sampling(0.0), end_ids=[tokenizer.end_id], vocab_size=tokenizer.vocab_size,
        mesh=whole.mesh,
    )  # fmt: skip
    search = BeamSearch(decoder, beams) if beams > 1 else None
    score = metrics.speech if config.num_mels else metrics.translation

    def write_batch(params: Any, part: str, index: np.ndarray) -> list[str]:
        batch = batches.heldout(part, index)
        prompts = Prompts([tokenizer.target_start_ids] * len(index), batch["source"], batch["source_segment_ids"])
        new = task.target_len
        if search is not None:
            return [tokenizer.decode(best[0][0]) for best in search.search(params, prompts, max_new_tokens=new)]
        return [tokenizer.decode(ids) for ids in decoder.generate(params, prompts, max_new_tokens=new)]

    def write(state: State, limit: int, progressed: Callable[[], None] = lambda: None) -> Written:
        references, texts, sources, params = [], [], [], whole.params(state)
        for part, store in batches.stores.items():
            count = len(store.rows[batches.evaluated])
            chosen = np.unique(np.linspace(0, count - 1, min(limit or count, count)).astype(int))
            for first in range(0, len(chosen), batch_size):
                index = chosen[first : first + batch_size]
                padded = np.pad(index, (0, batch_size - len(index)), mode="edge")  # one shape is compiled
                texts += write_batch(params, part, padded)[: len(index)]
                progressed()
            rows = store.rows_of(["target"], batches.evaluated, chosen)["target"]
            references += [tokenizer.decode(row.tolist()) for row in rows]
            if "source" in store.columns:
                rows = store.rows_of(["source"], batches.evaluated, chosen[:shown])["source"]
                sources += [tokenizer.decode(row.tolist()) for row in rows]
        lines = []
        for number in range(min(shown, len(texts))):
            lines += [f"< {sources[number]}"] if number < len(sources) else []
            lines += [f"> {texts[number]}", f"= {references[number]}", ""]
        figures = {f"eval/{name}": value for name, value in score(references, texts).items()}
        return Written(figures, "\n".join(lines).rstrip(), references, texts)

    return write
