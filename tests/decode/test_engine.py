"""A request's text is a function of the request and the model alone, whoever asks beside it."""

from typing import Any

import jax
import numpy as np
import pytest
from decode.engines import Answers, Subject, answers, end_of, same, tokens_of

from helpers import MESHES, rotated
from lmkit.config.entry import compose
from lmkit.config.sections.model import Position
from lmkit.decode import Prompts, Sampling
from lmkit.decode.request import Request, TokenEvent
from lmkit.parallel.mesh import build_mesh

MIXED: dict[str, Any] = {"num_kv_heads": 2, "sliding_window": 6, "global_every": 2}
DRAWN = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
LENGTHS = (3, 1, 20, 40, 17, 33, 16, 32, 5, 60)  # of prompts: below, at and above the borders of pieces
NEW = 8


def prompts(seed: int = 0, begin: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [begin + tuple(rng.integers(0, 64, length).tolist()) for length in LENGTHS]


def requests(**more: Any) -> list[Request]:
    """Greedy ones, drawn ones and ones with every rule."""
    rules = {"presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": {5: 2.0, 9: -3.0}, "top_logprobs": 3}
    kinds: list[dict[str, Any]] = [{}, {"sampling": DRAWN}, {"sampling": DRAWN, **rules}, {**rules}]
    return [Request(tokens, NEW, seed=number, **(kinds[number % 4] | more)) for number, tokens in enumerate(prompts())]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(**MIXED)


@pytest.fixture(scope="module")
def alone(subject: Subject) -> list[Any]:
    """Each request's events where nobody else asks."""
    with subject.engine() as engine:
        return [answers(engine, [request])[0] for request in requests()]


def test_greedy_texts_are_those_of_generate(subject: Subject) -> None:
    expected = subject.decoder().generate(subject.params, Prompts(prompts()), max_new_tokens=NEW)
    with subject.engine() as engine:
        found = answers(engine, [Request(tokens, NEW) for tokens in prompts()])
    assert [tokens_of(events) for events in found] == expected
    assert {end_of(events).reason for events in found} == {"length"}


def test_log_probabilities_are_the_models_own(subject: Subject) -> None:
    request = Request(prompts()[2], NEW, DRAWN, logit_bias={5: 4.0}, top_logprobs=20)
    with subject.engine() as engine:
        (whole,) = answers(engine, [request])
    events = [event for event in whole if isinstance(event, TokenEvent)]
    text = [event.token for event in events]
    row = np.array([*request.tokens, *text])
    run = jax.jit(lambda params, tokens_BT: subject.merge(params)(tokens_BT))
    logits_TV = np.asarray(run(subject.params, row[None, :-1])[0])[len(request.tokens) - 1 :]
    share_TV = np.asarray(jax.nn.log_softmax(logits_TV, axis=-1))
    np.testing.assert_allclose([event.logprob for event in events], share_TV[np.arange(NEW), text], atol=2e-5)
    for event, share_V in zip(events, share_TV, strict=True):
        best = np.argsort(-share_V, kind="stable")[:20]
        assert [token for token, _ in event.top] == best.tolist()
        np.testing.assert_allclose([value for _, value in event.top], share_V[best], atol=2e-5)
        assert dict(event.top).get(event.token, event.logprob) == event.logprob


@pytest.mark.parametrize("slots", rotated([3, 16, 40], 3, 40))
def test_alone_equals_among_others_on_any_number_of_slots(subject: Subject, alone: list, slots: int) -> None:
    noise = [
        Request(tokens, 5 + number % 3, Sampling(0.9), seed=99) for number, tokens in enumerate(prompts(seed=1) * 3)
    ]
    with subject.engine(slots=slots) as engine:
        found = answers(engine, [one for pair in zip(noise, requests() * 3, strict=True) for one in pair])[1::2]
        assert all(same(a, b) for a, b in zip(found, alone * 3, strict=True))
        assert engine.stats().compilations == 0


def test_alone_equals_after_a_preemption(subject: Subject, alone: list) -> None:
    """One owner has both slots until another one comes; those that give way go on with the same bits."""
    long = [Request(tokens, 40, DRAWN, number, 0.3, top_logprobs=2) for number, tokens in enumerate(prompts()[:2])]
    with subject.engine(slots=2) as engine:
        expected = [answers(engine, [request])[0] for request in long]
        several = Answers(engine)

        def when(events: list) -> None:
            if len(events) == 20:
                several.ask(requests()[6]._replace(owner="other"))

        for number, request in enumerate(long):
            several.ask(request._replace(owner="greedy"), when if number == 0 else None)
        several.wait(3)
        assert engine.stats().preemptions >= 1
        assert several.order.index(2) < len(several.order) - 30, "the other owner did not have to wait for the end"
    assert all(same(a, b) for a, b in zip(several.events, [*expected, alone[6]], strict=True))


def test_a_prefix_that_is_kept_gives_the_same_bits(subject: Subject, alone: list) -> None:
    with subject.engine(prefix_bytes=1 << 20) as engine:
        cold = answers(engine, requests())
        warm = answers(engine, requests())
        stats = engine.stats()
        expected = [(len(request.tokens) - 1) // 16 * 16 for request in requests()]
        assert [end_of(events).cached_tokens for events in warm] == expected
        assert all(same(a, b) for a, b in zip(cold + warm, alone * 2, strict=True))
        assert 0 < stats.cached_bytes <= 1 << 20
        assert stats.cached_tokens == sum(expected)
        block = stats.cached_bytes // sum(len(request.tokens) // 16 for request in requests())
    with subject.engine(prefix_bytes=2 * block) as engine:  # room for two: the longest prompt pushes its own out
        for _ in range(2):
            assert same(answers(engine, [requests()[9]])[0], alone[9])
            assert engine.stats().cached_bytes == 2 * block


@pytest.mark.parametrize("changes", [
    {"sliding_window": 24},  # every layer: a ring that is shorter than the texts
    pytest.param({"position": Position.learned, "max_seq_len": 96, "num_kv_heads": 1}, marks=pytest.mark.slow),
    pytest.param({"num_experts": 4, "experts_per_token": 2, "capacity_factor": 1.0}, marks=pytest.mark.slow),
], ids=["window", "learned", "experts"])  # fmt: skip
def test_other_models(changes: dict) -> None:
    """The same as by `generate`, alone as among others, with a kept prefix and after a preemption."""
    subject = Subject(**changes)
    asked = [Request(tokens, NEW) for tokens in prompts()]
    expected = subject.decoder().generate(subject.params, Prompts(prompts()), max_new_tokens=NEW)
    with subject.engine(slots=4, prefix_bytes=1 << 20) as engine:
        cold = [answers(engine, [request])[0] for request in asked]
        warm = answers(engine, asked)
        assert engine.stats().cached_tokens > 0
        assert [tokens_of(events) for events in cold] == expected
        assert all(same(a, b) for a, b in zip(cold, warm, strict=True))


@pytest.mark.parametrize("mesh_name", rotated(["data2_fsdp2_tensor2", "data8"], "data2_fsdp2_tensor2"))
def test_on_eight_devices(subject: Subject, alone: list, mesh_name: str) -> None:
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    sharded = Subject(mesh, **MIXED)
    with sharded.engine(prefix_bytes=1 << 20) as engine:
        one = [answers(engine, [request])[0] for request in requests()]
        many = answers(engine, requests() * 3)
        long = Answers(engine)

        def when(events: list) -> None:
            if len(events) == 20:
                long.ask(requests()[6]._replace(owner="other"))

        for number in range(16):
            long.ask(requests()[2]._replace(max_new_tokens=40, owner="greedy"), None if number else when)
        long.wait(17)
        assert engine.stats().preemptions
        assert engine.stats().compilations == 0
    assert [tokens_of(events) for events in one] == [tokens_of(events) for events in alone]
    assert all(same(a, b) for a, b in zip(many, one * 3, strict=True))
    assert all(same(a, long.events[0]) for a in long.events[:16])
    assert same(long.events[16], one[6])


def test_a_request_can_be_started_from_its_pieces_alone() -> None:
    """Nothing of a text depends on what its slot held before: not even numbers that are not finite."""
    subject = Subject()
    bad = jax.tree.map(lambda x: x * np.float32(np.nan), subject.params)
    with subject.engine(slots=1) as engine:
        request = Request(prompts()[2], NEW)
        (before,) = answers(engine, [request])
        engine.swap(bad)
        (wrong,) = answers(engine, [request])
        assert end_of(wrong).reason == "error"
        assert "not finite" in end_of(wrong).message
        engine.swap(subject.params)
        assert same(answers(engine, [request])[0], before)
