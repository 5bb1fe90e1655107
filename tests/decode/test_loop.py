"""The loop: the same tokens as without a cache, on any mesh, from a seed; rows end by themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import MESHES, params_of, rotated
from lmkit.config.entry import compose
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.model import Position
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling, Stamps
from lmkit.decode.loop import NOTHING
from lmkit.models import build_model
from lmkit.nn.param import param_specs
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

TEXT: dict[str, Any] = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "embed_dim": 32, "init_std": 0.3}
GPT = GPTConfig(**TEXT, num_kv_heads=2, sliding_window=6, global_every=2)
ENCDEC = EncDecConfig(**TEXT, position=Position.relative)
PROMPTS = [[5, 9, 11], [3], [60, 2, 2, 8, 30, 31, 32, 33, 34]]
SAMPLING = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
STAMPS = Stamps(first=50, end=13, plain=49, latest=3)
NEW = 10


class Subject:
    """A model and prompts for it."""

    def __init__(self, config: Any):
        self.config = config
        self.graph, self.params = params_of(build_model(config, nnx.Rngs(0)))
        self.prompts = Prompts(PROMPTS)
        if isinstance(config, EncDecConfig):
            source = np.random.default_rng(0).integers(0, 64, (3, 8), dtype=np.int32)
            self.prompts = Prompts([[1]] * 3, source, (np.arange(8) < np.array([[8], [3], [6]])).astype(np.int32))

    def merge(self, params: Any) -> Any:
        return nnx.merge(self.graph, nnx.State(params))

    def decoder(self, sampling: Sampling | None = None, **more: Any) -> Decoder:
        return Decoder(self.merge, self.config, sampling or Sampling(), **more)

    def on(self, mesh: Any) -> Any:
        """The parameters on a mesh."""
        specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(self.config, nnx.Rngs(0))))[1])
        return jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), self.params, specs)

    def uncached(self, steps: int) -> list[list[int]]:
        """The likeliest token again and again, the whole row through the model each time."""
        rows, run = [], jax.jit(lambda params, *inputs: self.merge(params)(*inputs))
        room = max(len(prompt) for prompt in self.prompts.tokens) + steps
        for number, prompt in enumerate(self.prompts.tokens):
            tokens = list(prompt)
            for _ in range(steps):
                inputs = [jnp.array([tokens + [0] * (room - len(tokens))])]
                if self.prompts.source is not None and self.prompts.source_ids is not None:
                    inputs = [self.prompts.source[number, None], *inputs, self.prompts.source_ids[number, None]]
                logits = run(self.params, *inputs)
                tokens.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
            rows.append(tokens[len(prompt) :])
        return rows


@pytest.fixture(scope="module", params=[GPT, ENCDEC], ids=["gpt", "encdec"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


def test_greedy_equals_the_model_without_a_cache(subject: Subject) -> None:
    assert subject.decoder().generate(subject.params, subject.prompts, max_new_tokens=NEW) == subject.uncached(NEW)


@pytest.mark.parametrize(("config", "mesh_name"), rotated(
    [(GPT, "data2_fsdp2_tensor2"), (GPT, "fsdp8"), (GPT, "data8"), (ENCDEC, "data2_fsdp2_tensor2")],
    (GPT, "fsdp8"), (ENCDEC, "data2_fsdp2_tensor2"),
))  # fmt: skip
def test_the_same_tokens_on_eight_devices(config: Any, mesh_name: str) -> None:
    """Drawn ones with ends and every filter; three rows for two or eight groups of devices."""
    subject, mesh = Subject(config), build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "seed": 3}
    more: dict[str, Any] = {"end_ids": [7, 13], "stamps": STAMPS if config is GPT else None}
    drawn = subject.decoder(SAMPLING, **more).generate(subject.params, subject.prompts, **settings)
    sharded = subject.decoder(SAMPLING, **more, mesh=mesh).generate(subject.on(mesh), subject.prompts, **settings)
    assert sharded == drawn
    assert any(drawn)
    if config is GPT:
        assert all(STAMPS.first <= row[0] <= STAMPS.first + 3 for row in drawn)


@pytest.mark.parametrize(
    ("config", "mesh_name"), rotated([(GPT, "data8"), (ENCDEC, "data2_fsdp2_tensor2")], (ENCDEC, "data2_fsdp2_tensor2"))
)
def test_the_same_beams_on_eight_devices(config: Any, mesh_name: str) -> None:
    subject, mesh = Subject(config), build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    found = []
    for one, params in ((None, subject.params), (mesh, subject.on(mesh))):
        decoder = subject.decoder(Sampling(repetition_penalty=1.2), end_ids=[7, 13], stamps=STAMPS, mesh=one)
        rows = BeamSearch(decoder, 3).search(params, subject.prompts, max_new_tokens=6)
        found.append([[tokens for tokens, _ in row] for row in rows])
    assert found[0] == found[1]


def test_seeds_rows_and_neighbours() -> None:
    """A row's text depends on the seed and on what it is called, not on who is beside it."""
    subject = Subject(GPT)
    decoder = subject.decoder(SAMPLING)

    def make(rows: list, seed: int, first_row: int = 0) -> list[list[int]]:
        return decoder.generate(subject.params, Prompts(rows, first_row=first_row), max_new_tokens=NEW, seed=seed)

    together = make(PROMPTS, 7)
    assert together == make(PROMPTS, 7)
    assert together != make(PROMPTS, 8)
    assert make(PROMPTS[2:], 7, first_row=2) == together[2:]
    named = Prompts([*PROMPTS[2:], PROMPTS[0]], names=[2, 0])
    assert decoder.generate(subject.params, named, max_new_tokens=NEW, seed=7) == [together[2], together[0]]
    same = make([PROMPTS[0]] * 3, 7)
    assert len({tuple(row) for row in same}) == 3


def test_rows_end_by_themselves_and_the_rest_goes_on() -> None:
    subject = Subject(GPT)
    whole = subject.decoder().generate(subject.params, subject.prompts, max_new_tokens=NEW)
    end = whole[1][3]
    steps = list(subject.decoder(end_ids=[end]).stream(subject.params, subject.prompts, max_new_tokens=NEW))
    rows = np.stack(steps, axis=1)
    for row, expected in zip(rows, whole, strict=True):
        length = expected.index(end) + 1 if end in expected else NEW
        assert row[:length].tolist() == expected[:length]
        assert (row[length:] == NOTHING).all()
    alone = Prompts([PROMPTS[1]])
    assert len(list(subject.decoder(end_ids=[end]).stream(subject.params, alone, max_new_tokens=NEW))) <= 5


def test_one_prefill_and_one_step_are_compiled() -> None:
    """Whatever the position and the length of the prompts within one multiple."""
    subject = Subject(GPT)
    decoder = subject.decoder(SAMPLING)
    for prompts in (PROMPTS, [[1], [2, 3], [4, 5, 6]]):
        decoder.generate(subject.params, Prompts(prompts), max_new_tokens=NEW)
    assert decoder._prefill._cache_size() == 1
    assert decoder._step._cache_size() == 1


def test_tokens_beyond_the_tokenizer_are_never_chosen() -> None:
    subject = Subject(GPT)
    chosen = subject.decoder(Sampling(temperature=5.0), vocab_size=7).generate(
        subject.params, subject.prompts, max_new_tokens=20
    )
    assert {token for row in chosen for token in row} <= set(range(7))


def test_a_learned_table_is_used_to_its_last_row() -> None:
    """A prompt is padded to a multiple, but never beyond the positions that there are."""
    subject = Subject(GPTConfig(**TEXT, position=Position.learned, max_seq_len=12))
    prompts = Prompts([[1, 2, 3, 4, 5, 6, 7, 8], [9]])
    tokens = subject.decoder().generate(subject.params, prompts, max_new_tokens=4)
    subject.prompts = prompts
    assert tokens == subject.uncached(4)
