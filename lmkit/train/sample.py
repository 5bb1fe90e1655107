"""A sample of the model's text at each evaluation: short, uncached, compiled once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmkit.data.tokenizer import Tokenizer
from lmkit.parallel.mesh import batch_shards
from lmkit.parallel.rules import GATHERED, current_spec, reshard, sharding_of
from lmkit.train.state import Blueprint, State, evaluation_params, root_key


def make_sampler(
    blueprint: Blueprint,
    tokenizer: Tokenizer,
    *,
    prompt: str,
    num_tokens: int,
    temperature: float,
    seq_len: int,
    seed: int,
) -> Callable[[State], str]:
    """sample(state) -> text that continues the prompt, at most `num_tokens` tokens, up to the end of a document."""
    start = [tokenizer.end_id, *tokenizer.encode_batch([prompt])[0].tolist()][: max(seq_len - num_tokens, 1)]
    length = min(-(-(len(start) + num_tokens) // 128) * 128, seq_len)
    last = min(len(start) + num_tokens, length)
    rows = batch_shards(blueprint.mesh.shape)  # the batch dim must divide; the rows are equal and one is shown
    key = root_key(seed, "sample")

    def generate(state: State, tokens_BT: jax.Array) -> jax.Array:
        model: Any = blueprint.merge(evaluation_params(blueprint, state))

        def extend(index: jax.Array, tokens_BT: jax.Array) -> jax.Array:
            segments_BT = jnp.cumsum(tokens_BT == tokenizer.end_id, axis=1, dtype=jnp.int32)
            hidden_BTD = reshard(model.hidden(tokens_BT, segments_BT), GATHERED)
            hidden_BD = jax.lax.dynamic_index_in_dim(hidden_BTD, index - 1, axis=1, keepdims=False)
            logits_BV = jnp.einsum(
                "BD,VD->BV", hidden_BD, model.head_VD().astype(hidden_BD.dtype), preferred_element_type=jnp.float32,
                out_sharding=current_spec(("batch", None)),
            )[:, : tokenizer.vocab_size]  # fmt: skip
            if cap := blueprint.model_config.logit_softcap:  # type: ignore[attr-defined]
                logits_BV = cap * jnp.tanh(logits_BV / cap)
            if temperature > 0:
                noise_V = jax.random.gumbel(jax.random.fold_in(key, index), logits_BV.shape[1:])
                logits_BV = logits_BV / temperature + noise_V
            chosen_B = jnp.argmax(logits_BV, axis=1).astype(jnp.int32)
            return jnp.where(jnp.arange(length) == index, chosen_B[:, None], tokens_BT)

        return jax.lax.fori_loop(len(start), last, extend, tokens_BT)

    step = jax.jit(generate)
    sharding = sharding_of(("batch", "seq"), blueprint.mesh)

    def sample(state: State) -> str:
        tokens = np.zeros((rows, length), np.int32)
        tokens[:, : len(start)] = start
        out = step(state, jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index]))
        ids = np.asarray(out.addressable_data(0))[0, len(start) : last].tolist()
        return tokenizer.decode(ids[: ids.index(tokenizer.end_id)] if tokenizer.end_id in ids else ids)

    return sample
