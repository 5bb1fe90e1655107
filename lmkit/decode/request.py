"""What an engine is asked for and what it answers: the border between serving and decoding.

A request is text already turned into ids; an answer comes as events, a token each. Nothing here knows HTTP or jax.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from lmkit.decode.sampling import Sampling


class Grammar(Protocol):
    """What may follow, token by token: a state of its own for each request."""

    def mask(self) -> Sequence[bool]:
        """bool [V]: which tokens may come next."""
        ...

    def accept(self, token: int) -> bool:
        """Takes the token that came; False where the text is complete."""
        ...


class Request(NamedTuple):
    """One text to be written.

    Its tokens and log-probabilities are a function of these values and the model alone: not of other requests, of when
    it came, nor of how it was scheduled.

    Attributes:
        tokens: ids of the prompt, one or more.
        max_new_tokens: at most so many are written.
        sampling: how a token is chosen.
        seed: of the request; the noise of its i-th token is a function of (seed, i).
        presence_penalty: subtracted from the score of each token that has been written.
        frequency_penalty: subtracted once for each time that a token has been written.
        logit_bias: added to the scores of these tokens.
        top_logprobs: how many of the likeliest tokens each event has, at most MAX_TOP_LOGPROBS.
        grammar: restricts what may come.
        ignore_end: write on after an end token, to the last of max_new_tokens.
        owner: requests of different owners take turns.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}
    top_logprobs: int = 0
    grammar: Grammar | None = None
    ignore_end: bool = False
    owner: str = ""


MAX_TOP_LOGPROBS = 20  # as OpenAI's API has it


class TokenEvent(NamedTuple):
    """One token that was written.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability under the model, before temperature, filters, penalties and bias.
        top: (id, logprob) of the likeliest, the likeliest first.
        version: of the parameters that wrote it: how many swaps came before them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    version: int = 0


class EndEvent(NamedTuple):
    """Nothing comes after it; every request gets exactly one.

    Attributes:
        reason: "end" (an end token, which has no event of its own, or a grammar's end), "length", "cancelled", "error".
        message: with "error": what went wrong.
        cached_tokens: tokens of the prompt that were not computed again.
    """

    reason: str
    message: str = ""
    cached_tokens: int = 0


Emit = Callable[[TokenEvent | EndEvent], None]  # called on the engine's thread: it must return at once


class Ticket(Protocol):
    """A request in an engine."""

    def cancel(self) -> None:
        """Frees its slot at the next token; from any thread, any number of times. Its end is "cancelled"."""
        ...


class QueueFull(Exception):
    """More requests wait than may: come again later.

    Attributes:
        retry_sec: after so many seconds there is likely to be room.
    """

    def __init__(self, waiting: int, limit: int, retry_sec: float):
        super().__init__(f"{waiting} requests wait, and at most {limit} may: come again in {retry_sec:.0f} s")
        self.retry_sec = retry_sec


class Stopped(Exception):
    """The engine takes no more requests: it drains, or has failed."""


class EngineStats(NamedTuple):
    """Where an engine stands. Counters only grow; the rest is of this moment."""

    slots: int = 0
    running: int = 0
    waiting: int = 0
    requests: int = 0  # taken so far
    ended: Mapping[str, int] = {}
    prompt_tokens: int = 0  # of taken requests
    cached_tokens: int = 0  # of these, not computed again
    new_tokens: int = 0
    steps: int = 0  # decoding steps
    chunks: int = 0  # pieces of prompts
    preemptions: int = 0
    compilations: int = 0  # after it was ready: 0 unless something is wrong
    cached_bytes: int = 0  # of prefixes kept
    failure: str = ""  # why it does no more


class EngineLike(Protocol):
    """What a server needs of an engine."""

    length: int  # tokens of prompt and text together that a request may have

    def submit(self, request: Request, emit: Emit) -> Ticket:
        """Takes a request. Raises QueueFull, Stopped, and ConfigError for one that can never be served."""
        ...

    def swap(self, params: object) -> None:
        """Goes on with other parameters of the same shapes: running requests end with those they began with."""
        ...

    def stats(self) -> EngineStats: ...

    def drain(self, limit_sec: float) -> bool:
        """Takes no more requests and waits for those it has; False where some were cancelled at the limit."""
        ...

    def close(self) -> None:
        """Ends the thread; what still runs is cancelled."""
        ...
