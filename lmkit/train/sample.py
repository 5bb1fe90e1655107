"""A sample of the model's text at each evaluation, decoded with a cache, compiled once."""

from collections.abc import Callable

from lmkit.config.experiment import Experiment
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.console import console
from lmkit.core.state import Blueprint, State
from lmkit.core.task import Task
from lmkit.core.whole import Whole, no_samples, room_for_copy
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.decode import Decoder, Prompts, Sampling

SAMPLED = (ObjectiveKind.causal_lm, ObjectiveKind.chat)


def choose_sampler(
    experiment: Experiment, blueprint: Blueprint, task: Task
) -> tuple[Callable[[State], str] | None, Whole]:
    """What makes samples, None where none are asked for or their copy of the parameters does not fit, which is told.

    And the parameters to decode with: without a copy, so slower, where it does not fit.
    """
    train, whole = experiment.train, Whole(blueprint)
    fits = whole.nbytes <= (room := room_for_copy(blueprint, train.sample_gib))
    wanted = task.kind in SAMPLED and train.sample_tokens > 0
    if not wanted or not fits:
        if wanted:
            console.print(no_samples(whole, room, blueprint.mesh.shape["fsdp"]), style="dim", markup=False)
        return None, whole if fits else Whole(blueprint, copy=False)
    assert task.tokenizer is not None
    sample = make_sampler(
        blueprint, whole, task.tokenizer, prompt=train.sample_prompt, num_tokens=train.sample_tokens,
        temperature=train.sample_temperature, seq_len=experiment.data.seq_len, seed=experiment.run.seed,
    )  # fmt: skip
    return sample, whole


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
