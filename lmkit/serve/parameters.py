"""How texts are to be written: what /v1/completions and /v1/chat/completions have in common."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from lmkit.decode.sampling import Sampling
from lmkit.serve.fields import Fields, shown

MOST_CHOICES = 128
_MOST_STOPS, _LONGEST_STOP = 16, 1000
_SEED_BITS = 31


class Writing(NamedTuple):
    """How each text of a request is written."""

    n: int
    seed: int  # of the request: as asked, or drawn
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    sampling: Sampling
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    ignore_end: bool

    def seed_of(self, choice: int) -> int:
        """The seed of one of n texts: a function of the request's seed and of the text's number alone."""
        digest = hashlib.sha256(f"{self.seed} {choice}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def writing_of(fields: Fields, vocab_size: int) -> Writing:
    """Takes the common members. Raises Refused naming the one that is wrong."""
    stream = fields.flag("stream")
    options, include = fields.inner("stream_options"), False
    if options is not None:
        if not stream:
            raise fields.bad("stream_options", "it goes with stream=true alone")
        include = options.flag("include_usage")
        options.refuse("include_obfuscation", "nothing is padded", False)
        options.done()
    top_k = fields.integer("top_k", 0, -1)
    sampling = Sampling(
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_k=min(max(top_k, 0), vocab_size),
        top_p=fields.number("top_p", 1.0, 0, 1),
        min_p=fields.number("min_p", 0.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100),
    )
    seed = fields.take("seed", int)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise fields.bad("seed", f"{shown(seed)} does not fit into 64 bits")
    found = Writing(
        n=fields.integer("n", 1, 1, MOST_CHOICES),
        seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
        stop=_stops(fields),
        stream=stream,
        include_usage=include,
        sampling=sampling,
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_bias(fields, vocab_size),
        ignore_end=fields.flag("ignore_eos"),
    )
    fields.text("user")  # says who asks, and changes nothing
    return found


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop", str, list)
    words = [] if value is None else [value] if isinstance(value, str) else value
    if not all(isinstance(one, str) for one in words):
        raise fields.bad("stop", f"{shown(value)} is not a string or a list of strings")
    if len(words) > _MOST_STOPS or any(not 0 < len(one) <= _LONGEST_STOP for one in words):
        raise fields.bad("stop", f"at most {_MOST_STOPS} strings of 1 to {_LONGEST_STOP} characters")
    return tuple(words)


def _bias(fields: Fields, vocab_size: int) -> dict[int, float]:
    value, found = fields.take("logit_bias", dict) or {}, {}
    for name, bias in value.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocab_size):
            raise fields.bad("logit_bias", f"{shown(name)} is no token: they are 0 to {vocab_size - 1}")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise fields.bad("logit_bias", f"{shown(bias)} for token {name}: it must be a number from -100 to 100")
        found[int(name)] = float(bias)
    return found
