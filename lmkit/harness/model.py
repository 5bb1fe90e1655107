"""lm-eval's model: log-likelihoods by packed slots, texts by the decoder with a cache.

The one module that subclasses a class of lm-eval; importing it needs the extra `evals`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.base import ConfigError
from lmkit.console import Progress
from lmkit.data.tokens.chat import ChatTemplate
from lmkit.decode import Decoder, Prompts, Sampling, TextStream
from lmkit.harness.score import Item, PackedScorer
from lmkit.weights import Codec

_TEXTS = 16  # made at a time
_MULTIPLE = 16  # of the decoder's prompts: which length is compiled follows from a text alone
_MOST_NEW = 256  # tokens of an answer, where a task does not say: as lm-eval's other models


class Words(NamedTuple):
    """Text to ids and back for the harness."""

    codec: Codec
    template: ChatTemplate | None
    name: str
    first: list[int] = []  # noqa: RUF012 (the token that a text begins with, where the tokenizer's files name one)


class HarnessModel(TemplateLM):
    """A model of ours to lm-eval. Every process of a job must be given the same requests.

    Args:
        merge: parameters to the model.
        config: the model's.
        max_len: tokens that a request may have; what is longer loses its beginning, and is counted in `truncated`.
        batch_size: requests on the devices at a time; 0 = as many as keep them busy.
        progress: from what is done to what is told of it.
    """

    def __init__(
        self, merge: Callable[[Any], Any], config: Any, params: Any, mesh: Mesh, words: Words, *,
        max_len: int = 0, batch_size: int = 0, progress: Callable[[str], Callable[[int, int], None]] = Progress,
    ):  # fmt: skip
        super().__init__()
        self.config, self.params, self.mesh, self.words = config, params, mesh, words
        self.max_length = min(max_len or config.max_seq_len, config.max_seq_len)
        self.batch_size, self._merge, self._progress = batch_size, merge, progress
        self._scorer = PackedScorer(merge, mesh, max_len=self.max_length, batch_size=batch_size)
        self._decoders: dict[Sampling, Decoder] = {}
        self._begin = words.codec.encode("")
        self.truncated = 0  # requests that were too long

    @property
    def eot_token_id(self) -> int:
        ends = self.words.codec.end_ids
        return ends[0] if ends else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text begins with, where it has no context."""
        codec = self.words.codec
        first = [*self._begin[:1], *self.words.first, *codec.start_ids[:1], *codec.end_ids[:1]]
        if not first:
            raise ConfigError("the tokenizer has neither a start nor an end token: nothing can stand before a text")
        return first[0]

    @property
    def tokenizer_name(self) -> str:
        return self.words.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.words.template.source if self.words.template is not None and chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to where the answer begins, or goes on where the last message has begun it."""
        assert self.words.template is not None
        text = self.words.template.render(chat_history, "a prompt", add_generation_prompt)
        last = chat_history[-1]["content"] if chat_history else ""
        if not add_generation_prompt and (end := text.rfind(last)) >= 0:
            return text[: end + len(last)]
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids, with what the tokenizer puts before a text unless it stands there already or is not wanted."""
        plain = self.words.codec.bare(string)
        if add_special_tokens is False or (self._begin and plain[: len(self._begin)] == self._begin):
            return plain
        return self.words.codec.encode(string)

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether it is the likeliest one."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each (texts, context ids, continuation ids)."""
        items = [self._item(context, continuation) for _, context, continuation in requests]
        scores = self._scorer.score(self.params, items, self._progress("scoring"))
        return [(one.log_likelihood, one.greedy) for one in scores]

    def _item(self, context: Sequence[int], continuation: Sequence[int]) -> Item:
        whole = [*context, *continuation]
        self.truncated += len(whole) > self.max_length + 1
        inputs = whole[-(self.max_length + 1) : -1]
        return Item(tuple(inputs), tuple(continuation[-len(inputs) :]))

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows of the longest length, each token once."""
        items, counts = [], []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            some = [self._item(*make_disjoint_window(window)) for window in windows]
            items += some
            counts.append(len(some))
        scores = iter(self._scorer.score(self.params, items, self._progress("scoring")))
        return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string, its end token or the most tokens."""
        found, tell = [""] * len(requests), self._progress("writing")
        groups: dict[tuple, list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            context, given = request.args
            how = normalize_gen_kwargs(dict(given), _MOST_NEW)
            new = min(int(how["max_gen_toks"]), self.max_length - 1)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            self.truncated += len(ids) > self.max_length - new
            ids = ids[-(self.max_length - new) :]
            width = -(-len(ids) // _MULTIPLE)
            stop = tuple(one for one in how["until"] if one)
            groups.setdefault((width, new, stop, _sampling(how)), []).append((number, ids))
        size = max(min(self.batch_size or _TEXTS, _TEXTS), 1)
        done = 0
        for (_, new, stop, sampling), rows in sorted(groups.items(), key=lambda one: -one[0][0]):
            rows.sort(key=lambda row: row[1])
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                texts = self._write([ids for _, ids in some], new, list(stop), sampling)
                for (number, _), text in zip(some, texts, strict=True):
                    found[number] = text
                done += len(some)
                tell(done, len(requests))
        return found

    def _write(self, prompts: list[list[int]], new: int, stop: list[str], sampling: Sampling) -> list[str]:
        """The same program for any number of prompts of a width: rows that are missing are written twice."""
        codec = self.words.codec
        decoder = self._decoders.get(sampling)
        if decoder is None:
            decoder = self._decoders[sampling] = Decoder(
                self._merge, self.config, sampling, end_ids=codec.end_ids, suppress=codec.rules.suppress,
                suppress_first=codec.rules.suppress_first, vocab_size=codec.vocab_size, mesh=self.mesh,
            )  # fmt: skip
        size = -(-_TEXTS // batch_shards(self.mesh.shape)) * batch_shards(self.mesh.shape)
        padded = [*prompts, *[prompts[-1]] * (size - len(prompts))]
        streams = [TextStream(codec.decode, ids, stop) for ids in prompts]
        texts, ended = [""] * len(prompts), [False] * len(prompts)
        for tokens in decoder.stream(self.params, Prompts(padded), max_new_tokens=new):
            for row, stream in enumerate(streams):
                if not ended[row]:
                    ended[row] = int(tokens[row]) in codec.end_ids
                    texts[row] += stream.finish() if ended[row] else stream.push(int(tokens[row]))
                    ended[row] |= stream.stopped
            if all(ended):
                break
        return [text + stream.finish() for text, stream in zip(texts, streams, strict=True)]

    def get_model_info(self) -> dict[str, Any]:
        """For results.json."""
        return {"model_source": "lmkit", "model_dtype": self.config.dtype.name, "max_length": self.max_length}


def _sampling(how: dict[str, Any]) -> Sampling:
    """As lm-eval's other models understand a task's generation_kwargs."""
    if not how.get("do_sample"):
        return Sampling(0.0)
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    return Sampling(float(how.get("temperature", 1.0)), **{name: how[name] for name in names if name in how})
