"""Greedy and beam search equal transformers' `generate`, token for token.

Needs the extra `parity` (torch on CPU, transformers).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.config.sections.families import EncDecConfig
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling
from lmkit.decode.sampling import filtered
from lmkit.interop import load_params, read_config
from lmkit.models import build_model

LOUD = "LOUD: generation is not compared with transformers; pip install 'lmkit[parity]'"
torch = pytest.importorskip("torch", reason=LOUD)
transformers = pytest.importorskip("transformers", reason=LOUD)

from interop.reference import MODELS, make

NAMES = [name for name in MODELS if name not in ("bert", "roberta", "modernbert", "vit", "siglip", "clip")]
PENALIZED = ["gpt2", "gemma3", "bart", "whisper"]  # one of each kind is enough
NEW, PAD, START = 14, 1, 2
LENGTHS = (5, 12, 9)  # of the prompts, around the windows of 8 and 9
SOURCES = (7, 11, 3)


class Pair:
    """A model of theirs and the same one of ours."""

    def __init__(self, name: str, folder: Path):
        self.theirs = make(name)
        self.theirs.save_pretrained(folder)
        self.config = read_config(folder)
        graph, shapes = params_of(nnx.eval_shape(lambda: build_model(self.config, nnx.Rngs(0))))
        self.params = load_params(folder, self.config, shapes)
        self.merge = lambda params: nnx.merge(graph, nnx.State(params))
        rng = np.random.default_rng(0)
        self.encdec = isinstance(self.config, EncDecConfig)
        self.prompts = [rng.integers(4, 90, length).tolist() for length in LENGTHS]
        if not self.encdec:
            self.ours = Prompts(self.prompts)
        elif self.config.num_mels:
            self.frames = rng.normal(size=(3, 2 * self.config.source_len, self.config.num_mels)).astype(np.float32)
            self.ours = Prompts([[START]] * 3, self.frames)
        else:
            self.source = rng.integers(4, 90, (3, max(SOURCES)))
            self.real = (np.arange(max(SOURCES)) < np.array(SOURCES)[:, None]).astype(np.int32)
            self.ours = Prompts([[START]] * 3, self.source.astype(np.int32), self.real)

    def decoder(self, ends: list[int], **sampling: Any) -> Decoder:
        return Decoder(self.merge, self.config, Sampling(**sampling), end_ids=ends)

    def generate(self, ends: list[int], **settings: Any) -> list[list[int]]:
        """Theirs: new tokens of each row, without the end."""
        config = transformers.GenerationConfig(
            max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, eos_token_id=ends or None, bos_token_id=None,
            decoder_start_token_id=START, **settings,
        )  # fmt: skip
        self.theirs.generation_config = config
        if not self.encdec:  # a row at a time: their padding on the left is another thing to get right
            rows = [self.theirs.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long))
                    for p in self.prompts]  # fmt: skip
            new = [row[0, len(p) :] for row, p in zip(rows, self.prompts, strict=True)]
        elif self.config.num_mels:
            base = transformers.generation.GenerationMixin.generate  # Whisper's own adds prompts and time stamps
            out = base(self.theirs, input_features=torch.tensor(self.frames.transpose(0, 2, 1)),
                       decoder_input_ids=torch.full((3, 1), START))  # fmt: skip
            new = out[:, 1:]
        else:
            new = self.theirs.generate(torch.tensor(self.source), attention_mask=torch.tensor(self.real))[:, 1:]
        return [self._until_end(row.tolist(), ends) for row in new]

    @staticmethod
    def _until_end(row: list[int], ends: list[int]) -> list[int]:
        stops = [row.index(end) for end in ends if end in row]
        return row[: min(stops)] if stops else row


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            made[name] = Pair(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def ends_of(greedy: list[list[int]]) -> list[int]:
    """A token that stops one row early and another one later, so that ends matter."""
    return [greedy[0][4], greedy[1][9]]


@pytest.mark.parametrize("name", NAMES)
def test_greedy(name: str, pairs: Any) -> None:
    """Rows of different lengths, with and without tokens that end them, and some with a repetition penalty."""
    pair = pairs(name)
    theirs = pair.generate([])
    assert pair.decoder([]).generate(pair.params, pair.ours, max_new_tokens=NEW) == theirs
    assert all(len(row) == NEW for row in theirs)
    ends = ends_of(theirs)
    assert pair.decoder(ends).generate(pair.params, pair.ours, max_new_tokens=NEW) == pair.generate(ends)
    if name not in PENALIZED:
        return
    ours = pair.decoder([], repetition_penalty=1.7).generate(pair.params, pair.ours, max_new_tokens=NEW)
    assert ours == pair.generate([], repetition_penalty=1.7)
    assert ours != theirs


BEAMS = {
    "plain": {},
    "longer": {"length_penalty": 2.5},
    "shorter": {"length_penalty": -1.0},
    "early": {"early_stopping": True},
    "penalty": {"repetition_penalty": 1.4},
}


@pytest.mark.parametrize(("name", "setting"), [
    *((name, setting) for name in ("gpt2", "bart") for setting in BEAMS),
    *((name, "plain") for name in ("mistral-windowed", "gemma3", "t5", "marian", "whisper")), ("t5-v1.1", "longer"),
])  # fmt: skip
def test_beams(name: str, setting: str, pairs: Any) -> None:
    """Three beams, and ends that come in the way."""
    pair, settings = pairs(name), BEAMS[setting]
    ends = ends_of(pair.generate([]))
    decoder = pair.decoder(ends, repetition_penalty=settings.get("repetition_penalty", 1.0))
    of_beams = {k: v for k, v in settings.items() if k != "repetition_penalty"}
    found = BeamSearch(decoder, 3, **of_beams).search(pair.params, pair.ours, max_new_tokens=NEW)
    assert [row[0][0] for row in found] == pair.generate(ends, num_beams=3, **settings)


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0.7), Sampling(temperature=1.3, top_k=9), Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.5, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
])  # fmt: skip
def test_the_filters_are_theirs(sampling: Sampling) -> None:
    """The distribution that a token is drawn from."""
    rng = np.random.default_rng(0)
    logits, tokens = 3 * rng.normal(size=(5, 61)).astype(np.float32), rng.integers(0, 61, (5, 20))
    seen = np.zeros((5, 61), bool)
    seen[np.arange(5)[:, None], tokens] = True
    config = transformers.GenerationConfig(**{**sampling._asdict(), "do_sample": True})
    config.top_k = sampling.top_k or None
    model = make("gpt2")
    model._prepare_special_tokens(config, False)
    processors = model._get_logits_processor(config, input_ids_seq_length=20)
    theirs = processors(torch.tensor(tokens), torch.tensor(logits)).softmax(-1).numpy()
    scores = filtered(logits, seen if sampling.repetition_penalty != 1 else None, sampling)
    ours = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # float32, exponentials of two libraries
    np.testing.assert_array_equal(ours > 0, theirs > 0)
