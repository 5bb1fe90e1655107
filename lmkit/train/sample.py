"""A sample of the model's text at each evaluation, decoded with a cache, compiled once."""

from collections.abc import Callable

from lmkit.core.state import Blueprint, State
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.train.whole import Whole


def make_sampler(
    blueprint: Blueprint,
    whole: Whole,
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
    num_new = min(num_tokens, seq_len - len(start))
    decoder = Decoder(
        blueprint.merge, blueprint.model_config, Sampling(temperature), end_ids=[tokenizer.end_id],
        vocab_size=tokenizer.vocab_size, mesh=whole.mesh,
    )  # fmt: skip

    def sample(state: State) -> str:
        (tokens,) = decoder.generate(whole.params(state), Prompts([start]), max_new_tokens=num_new, seed=seed)
        return tokenizer.decode(tokens)

    return sample
