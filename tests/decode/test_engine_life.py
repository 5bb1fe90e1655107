"""What is refused, cancelled, swapped or broken does not hang, and leaves no slot taken. Four slots: few programs."""

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from decode.engines import Answers, Subject, answers, end_of, same, tokens_of

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, EncDecConfig
from lmkit.decode import Engine, Sampling
from lmkit.decode.engine import core, prefix, steady
from lmkit.decode.request import EndEvent, QueueFull, Request, Stopped

SHORT, LONG = Request((5, 9, 11), 6), Request((3, 8), 80)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def empty(engine: Engine) -> None:
    """Nothing is left of what was asked, once the tick of the last event is over."""
    with engine._changed:
        assert engine._changed.wait_for(engine._done, 60)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert sum(stats.ended.values()) == stats.requests
    assert engine._core is not None
    assert len(engine._core.slots._free) == stats.slots
    assert not engine._core.staged


def test_others_go_on_while_a_long_prompt_is_computed(subject: Subject) -> None:
    with subject.engine(slots=4) as engine:
        several = Answers(engine)

        def when(events: list) -> None:
            if len(events) == 3:
                several.ask(Request(tuple(range(60)), 4))
                several.ask(SHORT)

        several.ask(LONG, when)
        several.wait(3)
        assert engine.stats().chunks == 1 + 4 + 1
        first = [several.order.index(number) for number in (1, 2)]
        between = several.order[several.order.index(0) + 2 : first[0]].count(0)
        assert between >= 4, "a step after each of its pieces"
        assert first[1] < first[0], "a short prompt does not wait for all of a long one"
        assert engine.stats().steps < 90, "texts take their steps together"


def test_a_cancelled_request_frees_its_slot_at_the_next_token(subject: Subject) -> None:
    with subject.engine(slots=1) as engine:
        several, tickets = Answers(engine), []

        def when(events: list) -> None:
            if len(events) == 4:
                tickets[0].cancel()
                tickets[2].cancel()

        tickets += [several.ask(LONG, when), several.ask(SHORT), several.ask(SHORT)]
        events = several.wait()
        assert [end_of(one).reason for one in events] == ["cancelled", "length", "cancelled"]
        assert len(events[0]) <= 6
        assert len(events[2]) == 1
        for ticket in tickets:
            ticket.cancel()
        assert same(answers(engine, [SHORT])[0], events[1])
        empty(engine)


def test_a_listener_that_fails_is_cancelled(subject: Subject) -> None:
    with subject.engine(slots=4) as engine:
        several = Answers(engine)

        def when(events: list) -> None:
            if len(events) == 2:
                raise BrokenPipeError("gone")

        several.ask(LONG, when)
        (events,) = several.wait()
        assert end_of(events).reason == "cancelled"
        assert engine.stats().failure == ""
        empty(engine)


def test_more_than_may_wait_are_sent_away(subject: Subject) -> None:
    with subject.engine(slots=1, queue=2) as engine:
        several = Answers(engine)
        tickets = [several.ask(LONG), *(several.ask(SHORT) for _ in range(2))]
        tickets.append(several.ask(SHORT)) if engine.stats().waiting < 2 else None
        with pytest.raises(QueueFull, match="at most 2") as error:
            engine.submit(SHORT, lambda _: None)
        assert 1 <= error.value.retry_sec < 60
        for ticket in tickets:
            ticket.cancel()
        several.wait()
        assert answers(engine, [SHORT, SHORT])


def test_owners_take_turns(subject: Subject) -> None:
    """Many requests of one owner, then one of another, which is next; within an owner first come, first served."""
    with subject.engine(slots=1, start=False) as engine:
        several = Answers(engine)
        engine.start()
        gate = threading.Event()
        several.ask(LONG, lambda events: gate.wait(60))
        for owner in ("a", "a", "a", "b", "c"):
            several.ask(SHORT._replace(owner=owner))
        gate.set()
        several.wait()
    firsts = sorted(range(1, 6), key=several.order.index)
    assert firsts == [1, 4, 5, 2, 3]


def test_an_error_in_the_loop_ends_all_requests(subject: Subject, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with subject.engine(slots=2) as engine:
        several, steps = Answers(engine), iter(range(100))
        step = core.Core._step

        def broken(self: Any, *args: Any) -> None:
            if next(steps) == 5:
                raise RuntimeError("planted")
            step(self, *args)

        monkeypatch.setattr(core.Core, "_step", broken)
        for _ in range(6):
            several.ask(LONG)
        for events in several.wait():
            assert end_of(events) == EndEvent("error", "RuntimeError: planted")
        with pytest.raises(Stopped, match="planted"):
            engine.submit(SHORT, lambda _: None)
        assert engine.stats().failure == "RuntimeError: planted"
        assert engine.stats().ended == {"error": 6}
        assert engine.drain(10)
        assert "planted" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["_admit", "_stage", "_piece", "_read"])
def test_no_place_of_an_error_loses_a_request(subject: Subject, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with subject.engine(slots=2) as engine:
        several = Answers(engine)

        def broken(*_: Any, **__: Any) -> None:
            raise MemoryError(name)

        monkeypatch.setattr(core.Core, name, broken)
        several.ask(LONG)
        assert end_of(several.wait()[0]).reason == "error"


def test_a_swap_lets_running_texts_end_with_their_own_parameters(subject: Subject) -> None:
    _, other = subject.fresh(7)
    asked = [LONG._replace(max_new_tokens=20), SHORT]
    with subject.engine(slots=4, prefix_bytes=1 << 20) as engine:
        prompt = SHORT._replace(tokens=tuple(range(40)))
        old = answers(engine, [*asked, prompt])
        assert engine.stats().cached_bytes > 0
        several = Answers(engine)

        def when(events: list) -> None:
            if len(events) == 5:
                engine.swap(other)
                several.ask(asked[1])
                several.ask(prompt)

        several.ask(asked[0], when)
        events = several.wait(3)
        assert same(events[0], old[0])
        assert not same(events[1], old[1])
        assert [{one.version for one in text[:-1]} for text in events] == [{0}, {1}, {1}]
        assert end_of(events[2]).cached_tokens == 0
        assert engine._core is not None
        assert list(engine._core.params) == [1], "the old ones are let go"
        new = answers(engine, asked)
        assert same(events[1], new[1])
        assert not same(events[0], new[0])
        with pytest.raises(ConfigError, match="shapes"):
            engine.swap({"other": other})
        engine.swap(subject.params)
        assert same(answers(engine, asked)[0], old[0])
        assert engine.stats().compilations == 0


def test_a_compilation_would_be_counted(subject: Subject) -> None:
    import jax

    with subject.engine(slots=4) as engine:
        several = Answers(engine)
        several.ask(SHORT, lambda events: jax.jit(lambda x: x * len(events))(1.5))
        several.wait()
        assert engine.stats().compilations >= 1


def test_it_drains(subject: Subject) -> None:
    with subject.engine(slots=1) as engine:
        several = Answers(engine)
        several.ask(SHORT)
        several.ask(SHORT)
        assert engine.drain(60)
        assert [end_of(events).reason for events in several.wait()] == ["length", "length"]
        with pytest.raises(Stopped):
            engine.submit(SHORT, lambda _: None)
    with subject.engine(slots=1) as engine:
        several = Answers(engine)
        for _ in range(3):
            several.ask(LONG, lambda _: time.sleep(0.02))
        assert not engine.drain(0.2)
        assert end_of(several.wait()[2]).reason == "cancelled"
        empty(engine)


def test_closed_it_cancels_what_runs(subject: Subject) -> None:
    with subject.engine(slots=1) as engine:
        several = Answers(engine)
        for _ in range(3):
            several.ask(LONG, lambda events: time.sleep(0.01))
        engine.close()
        assert [end_of(events).reason for events in several.wait()] == ["cancelled"] * 3
        with pytest.raises(Stopped):
            engine.submit(SHORT, lambda _: None)
        engine.close()


def test_an_end_token_ends_a_text(subject: Subject) -> None:
    with subject.engine(slots=4) as engine:
        (whole,) = answers(engine, [LONG._replace(max_new_tokens=10)])
    text = tokens_of(whole)
    with subject.engine(slots=4, end_ids=[text[4]]) as engine:
        ended, on = answers(engine, [LONG._replace(ignore_end=ignore, max_new_tokens=10) for ignore in (False, True)])
        assert tokens_of(ended) == text[: text.index(text[4])]
        assert end_of(ended) == EndEvent("end")
        assert same(on, whole)
        empty(engine)
    with subject.engine(slots=4, suppress=[text[0]], suppress_first=[text[1]]) as engine:
        for request in (LONG, LONG._replace(sampling=Sampling(1.0))):
            first, *rest = tokens_of(answers(engine, [request])[0])
            assert first not in text[:2]
            assert text[0] not in rest


class Alternating:
    """Even and odd tokens in turn, so many of them."""

    def __init__(self, count: int):
        self.count, self.said = count, list[int]()

    def mask(self) -> Sequence[bool]:
        return [token % 2 == len(self.said) % 2 for token in range(64)]

    def accept(self, token: int) -> bool:
        self.said.append(token)
        return len(self.said) < self.count


class Broken(Alternating):
    def accept(self, token: int) -> bool:
        raise KeyError(token)


class Shut(Alternating):
    def mask(self) -> Sequence[bool]:
        return [len(self.said) < 2] * 64


def test_a_grammar_decides_what_may_come_and_when_it_ends(subject: Subject) -> None:
    with subject.engine(slots=4) as engine:
        others = [SHORT._replace(seed=seed, sampling=Sampling(1.0)) for seed in range(3)]
        expected = answers(engine, others)
        ruled = [LONG._replace(grammar=kind(9)) for kind in (Alternating, Broken, Shut)]
        held, broken, shut, *free = answers(engine, [*ruled, *others])
        assert [token % 2 for token in tokens_of(held)] == [0, 1] * 4 + [0]
        assert end_of(held).reason == "end"
        assert end_of(broken).reason == end_of(shut).reason == "error"
        assert len(tokens_of(shut)) == 2
        assert "no token" in end_of(shut).message
        assert all(same(a, b) for a, b in zip(free, expected, strict=True))
        again = answers(engine, [LONG._replace(grammar=Alternating(9))])[0]
        assert same(again, held)
        assert engine.stats().failure == ""
        empty(engine)


@pytest.mark.parametrize(("changes", "words"), [
    ({"tokens": ()}, "at least one token"),
    ({"tokens": (64,)}, "0 to 63"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"max_new_tokens": 94}, "3 tokens and max_new_tokens=94 are more than the 96"),
    ({"sampling": Sampling(top_p=1.5)}, "top_p=1.5"),
    ({"top_logprobs": 21}, "from 0 to 20"),
    ({"logit_bias": {64: 1.0}}, "token 64"),
    ({"logit_bias": {1: float("nan")}}, "nan"),
    ({"presence_penalty": float("inf")}, "presence_penalty=inf"),
])  # fmt: skip
def test_what_can_never_be_served_is_refused(subject: Subject, changes: dict, words: str) -> None:
    with subject.engine(slots=4) as engine, pytest.raises(ConfigError, match=words):
        engine.submit(SHORT._replace(**changes), lambda _: None)
    assert engine.stats().requests == 0


@pytest.mark.parametrize(("config", "options", "words"), [
    (EncDecConfig(vocab_size=64), {}, "EncDecConfig.*batches"),
    (BERTConfig(vocab_size=64), {}, "BERTConfig"),
    (None, {"slots": 0}, "slots=0"),
    (None, {"length": 1}, "length=1"),
    (None, {"chunk": 0}, "chunk=0"),
    (None, {"prefix_bytes": -1}, "prefix_bytes=-1"),
])  # fmt: skip
def test_an_engine_that_cannot_be_is_refused(subject: Subject, config: Any, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine(subject.merge, subject.params, config or subject.config, **options)


def test_row_counts_that_give_other_bits_are_not_used(subject: Subject) -> None:
    with subject.engine(slots=4, start=False) as engine:
        programs, step = engine._programs, engine._programs("step", 4)
    assert engine._core is not None
    assert engine._core.rows == (4,)

    class Changed:
        """Two counts, of which the smaller one is wrong in a last bit."""

        sizes, parts = programs.sizes._replace(rows=(2, 4)), 1

        def __getattr__(self, name: str) -> Any:
            return getattr(programs, name)

        def __call__(self, name: str, size: int = 0) -> Any:
            if (name, size) != ("step", 2):
                return programs(name, size)

            def two(params: Any, group: Any, lengths: Any) -> Any:
                group, logits, total = step(
                    params, group, programs.put(np.pad(lengths, (0, 2), constant_values=-1), ())
                )
                return group, logits.at[0, 0].set(np.nextafter(logits[0, 0], np.float32(9))), total

            return two

    changed: Any = Changed()
    assert steady.steady_rows(changed, subject.params, programs.group())[0] == (4,)


def test_keys_of_prefixes_name_all_tokens_before_them() -> None:
    one, two = prefix.chain([1, 2, 3, 4, 5], 2), prefix.chain([9, 2, 3, 4], 2)
    assert len(one) == len(two) == 2
    assert one[1] != two[1]
    assert one == prefix.chain([1, 2, 3, 4], 2)
    assert prefix.chain([1], 2) == []


def test_two_hundred_requests_from_many_threads(subject: Subject) -> None:
    """Random lengths, rules and cancels: every request has one end, no slot is lost, the figures add up."""
    with subject.engine(slots=4, queue=200, prefix_bytes=1 << 16) as engine:
        several, tickets = Answers(engine), list[Any]()

        def client(seed: int) -> None:
            rng = random.Random(seed)
            for number in range(25):
                tokens = tuple(rng.randrange(64) for _ in range(rng.choice([1, 3, 16, 40])))
                sampling = rng.choice([Sampling(), Sampling(0.8, top_k=5), Sampling(1.0, repetition_penalty=1.2)])
                request = Request(tokens, rng.randint(1, 30), sampling, number, owner=str(seed % 3))
                tickets.append(several.ask(request))
                if rng.random() < 0.3:
                    rng.choice(tickets).cancel()

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        every = several.wait()
        stats = engine.stats()
        assert all(sum(isinstance(event, EndEvent) for event in events) == 1 for events in every)
        assert stats.requests == len(every) == 200
        assert stats.new_tokens == sum(len(tokens_of(events)) for events in every)
        assert stats.ended["length"] + stats.ended.get("cancelled", 0) == 200
        assert stats.compilations == 0
        empty(engine)
