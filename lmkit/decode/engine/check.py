"""What an engine may be made with and asked for: checks on the host, before anything is compiled or queued."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.decode.check import check_prompts
from lmkit.decode.loop import position_limit
from lmkit.decode.request import MAX_TOP_LOGPROBS, Request
from lmkit.decode.sampling import check_sampling

_UNSPLIT = ("stage", "context")


def check_axes(sizes: Mapping[str, int]) -> None:
    """Raises ConfigError for a mesh, axis -> size, that an engine cannot use."""
    for axis in _UNSPLIT:
        if sizes.get(axis, 1) > 1:
            raise ConfigError(
                f"mesh.{axis}={sizes[axis]}: an engine's steps are of one token, so nothing is split over it; set "
                f"mesh.{axis}=1 and a larger mesh.tensor"
            )


def check_engine(config: Any, mesh: Any, *, slots: int, length: int, chunk: int, queue: int, prefix_bytes: int) -> None:
    """Raises ConfigError for a model, a mesh or sizes that an engine cannot have."""
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"an engine for {type(config).__name__}: only a GPTConfig is decoded in slots; others are served in batches"
        )
    if (processes := jax.process_count()) > 1:
        raise ConfigError(f"{processes} processes: an engine runs in one; start one server for each, with its devices")
    check_axes(mesh.shape if mesh is not None else {})
    least = {"slots": (slots, 1), "length": (length, 2), "chunk": (chunk, 1), "queue": (queue, 0)}
    for name, (value, lowest) in (least | {"prefix_bytes": (prefix_bytes, 0)}).items():
        if value < lowest:
            raise ConfigError(f"{name}={value}: it must be at least {lowest}")
    if (limit := position_limit(config)) and length > limit:
        raise ConfigError(f"length={length} is more than the model's {limit} positions: set length={limit}")


def check_request(request: Request, config: Any, vocab: int, length: int) -> None:
    """Raises ConfigError for a request that can never be served."""
    check_prompts(config, 0, request.max_new_tokens, [request.tokens])
    if len(request.tokens) + request.max_new_tokens > length:
        raise ConfigError(
            f"a prompt of {len(request.tokens)} tokens and max_new_tokens={request.max_new_tokens} are more than the "
            f"{length} tokens that a slot holds: shorten the prompt, or ask for fewer"
        )
    check_sampling(request.sampling)
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise ConfigError(f"top_logprobs={request.top_logprobs}: it must be from 0 to {MAX_TOP_LOGPROBS}")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(request, name)):
            raise ConfigError(f"{name}={value}: it must be a finite number")
    for token, bias in request.logit_bias.items():
        if not 0 <= token < vocab:
            raise ConfigError(f"logit_bias has token {token}, the model 0 to {vocab - 1}")
        if not math.isfinite(bias):
            raise ConfigError(f"logit_bias of token {token} is {bias}: it must be a finite number")
