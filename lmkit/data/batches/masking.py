"""Windows of tokens to what an encoder is pre-trained on: hidden tokens, sentence pairs, cut-out spans.

All of it is a pure function of the tokens and a key of each row, so every visit of a window differs and every repeat
of a run does not. B rows, T tokens, P predicted positions, S source tokens.
"""

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.keyed import uniform
from lmkit.data.tokens.tokenizer import Tokenizer

_KEPT, _RANDOM = 0.1, 0.1  # of the chosen: left as they are, replaced by any token (Devlin et al. 2019, section 3.1)
_LEAST = 5  # tokens of a row: two parts of one, and what stands before, between and behind them


def draws(keys: np.ndarray, count: int, *use: int) -> np.ndarray:
    """float64 [B, count] in [0, 1): the numbers of a use of each row's key."""
    return uniform(keys[:, None], np.arange(count), *use)


class Masker:
    """Dynamic masking (Liu et al. 2019, section 4.1): each visit of a row hides other tokens.

    Args:
        share: of a row's tokens that are predicted; P = round(share T), as Devlin et al. 2019 fix it.
        words: whole words are hidden.
    """

    def __init__(self, tokenizer: Tokenizer, share: float, words: bool):
        if tokenizer.mask_id is None:
            raise ConfigError("masking needs a tokenizer with a mask: set tokenizer.mask_token=, such as [MASK]")
        if not 0 < share < 1:
            raise ConfigError(f"share={share} of the tokens cannot be hidden: give one between 0 and 1, such as 0.15")
        self.tokenizer, self.share, self.mask_id = tokenizer, share, tokenizer.mask_id
        self.special = np.array([tokenizer.end_id, tokenizer.start_id, tokenizer.mask_id, *tokenizer.sentinel_ids])
        self.continues = tokenizer.continues_word() if words else None

    def positions(self, seq_len: int) -> int:
        """P."""
        return max(round(self.share * seq_len), 1)

    def __call__(self, tokens: np.ndarray, inside: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """int tokens [B, T] and bool [B, T] of what may be hidden: inputs [B, T]; positions, targets, weights [B, P].

        Rows with fewer tokens predict their share of those.
        """
        rows, length = tokens.shape
        open_to = inside & ~np.isin(tokens, self.special)
        order = self._words(tokens) if self.continues is not None else np.arange(length)[None].repeat(rows, 0)
        draw = np.take_along_axis(draws(keys, length, 1), order, axis=1)  # one draw a word
        rank = np.where(open_to, draw + np.arange(length) * 1e-12, np.inf)
        positions = np.argsort(rank, axis=1, kind="stable")[:, : self.positions(length)]
        wanted = np.maximum(np.round(self.share * open_to.sum(1)), 1)
        chosen = np.take_along_axis(open_to, positions, axis=1) & (np.arange(positions.shape[1]) < wanted[:, None])
        targets = np.take_along_axis(tokens, positions, axis=1)
        fate = draws(keys, positions.shape[1], 2)
        other = (draws(keys, positions.shape[1], 3) * self.tokenizer.vocab_size).astype(tokens.dtype)
        hidden = np.where(fate < _KEPT + _RANDOM, other, np.full_like(targets, self.mask_id))
        shown = np.where(fate < _KEPT, targets, hidden)
        inputs = tokens.copy()
        np.put_along_axis(inputs, positions, np.where(chosen, shown, targets), axis=1)
        return {
            "inputs": inputs.astype(np.int32), "masked_positions": positions.astype(np.int32),
            "targets": targets.astype(np.int32), "weights": chosen.astype(np.float32),
        }  # fmt: skip

    def _words(self, tokens: np.ndarray) -> np.ndarray:
        """int [B, T]: the place of the first token of each one's word."""
        assert self.continues is not None
        goes_on, joins = self.continues
        first = np.ones(tokens.shape, bool)
        first[:, 1:] = ~(goes_on[tokens[:, 1:]] & joins[tokens[:, :-1]])
        return np.maximum.accumulate(np.where(first, np.arange(tokens.shape[1]), 0), axis=1)


def span_lengths(seq_len: int, share: float, mean: float) -> tuple[int, int, int]:
    """(raw tokens, spans, target tokens) of a row whose source has `seq_len` tokens, its end included.

    The raw tokens are as many as leave the source full (Raffel et al. 2020, section 3.1.4).
    """

    def lengths(raw: int) -> tuple[int, int, int]:
        noise = min(max(round(raw * share), 1), raw - 1)
        spans = max(min(round(noise / mean), noise, raw - noise), 1)
        return raw - noise + spans + 1, spans, noise + spans + 1

    raw = seq_len - 1
    while lengths(raw + 1)[0] <= seq_len:
        raw += 1
    while raw > 2 and lengths(raw)[0] > seq_len:
        raw -= 1
    _, spans, target = lengths(raw)
    return raw, spans, target


class SpanCutter:
    """Span corruption: spans give way to sentinels, and the target says what each of them stood for.

    Source: x0 <0> x3 x4 <1> x6 end. Target: <0> x1 x2 <1> x5 end (Raffel et al. 2020, figure 2).
    """

    def __init__(self, tokenizer: Tokenizer, seq_len: int, share: float, mean: float):
        if seq_len < _LEAST or not 0 < share < 1 or mean < 1:
            raise ConfigError(
                f"seq_len={seq_len} share={share} mean={mean}: a row needs {_LEAST} tokens or more, a share between 0 "
                f"and 1 and spans of 1 token or more"
            )
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.raw, self.spans, self.target_len = span_lengths(seq_len, share, mean)
        if self.spans > len(tokenizer.sentinel_ids):
            raise ConfigError(
                f"a row of {seq_len} tokens has {self.spans} spans, the tokenizer {len(tokenizer.sentinel_ids)} "
                f"sentinels: set tokenizer.sentinels={self.spans}, or longer spans with objective.span_tokens"
            )
        self.noise = self.target_len - 1 - self.spans

    def __call__(self, tokens: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """int tokens [B, raw] to source [B, S], and inputs, targets, weights [B, T]."""
        lengths_noise = _divide(draws(keys, self.noise - 1, 1), self.noise, self.spans)
        lengths_kept = _divide(draws(keys, self.raw - self.noise - 1, 2), self.raw - self.noise, self.spans)
        both = np.stack([lengths_kept, lengths_noise], axis=2).reshape(len(tokens), -1)  # kept, cut, kept, cut, ...
        ends = np.cumsum(both, axis=1)
        segment = np.sum(np.arange(self.raw)[None, :, None] >= ends[:, None, :], axis=2)  # [B, raw]
        end, sentinels = self.tokenizer.end_id, np.array(self.tokenizer.sentinel_ids[: self.spans])
        source = np.full((len(tokens), self.seq_len), end, np.int32)
        target = np.full((len(tokens), self.target_len), end, np.int32)
        for row, (ids, part) in enumerate(zip(tokens, segment, strict=True)):
            kept = [x for n in range(self.spans) for x in (ids[part == 2 * n], sentinels[n : n + 1])]
            cut = [x for n in range(self.spans) for x in (sentinels[n : n + 1], ids[part == 2 * n + 1])]
            flat = np.concatenate(kept)
            source[row, : len(flat)] = flat
            target[row, :-1] = np.concatenate(cut)
        start = np.full((len(tokens), 1), self.tokenizer.target_start_ids[0], np.int32)
        inputs = np.concatenate([start, target[:, :-1]], axis=1)
        return {"source": source, "inputs": inputs, "targets": target, "weights": np.ones(target.shape, np.float32)}


def _divide(draw: np.ndarray, total: int, parts: int) -> np.ndarray:
    """int [B, parts], each 1 or more, that sum to `total`: cuts where the smallest draws are [B, total - 1]."""
    cuts = np.sort(np.argsort(draw, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    edges = np.concatenate([np.zeros((len(draw), 1), int), cuts, np.full((len(draw), 1), total)], axis=1)
    return np.diff(edges, axis=1)


class Pairer:
    """Next-sentence pairs out of windows (Devlin et al. 2019, section 3.1, task 2): start A end B end.

    A and B are the two halves of a window's longest stretch inside one document; for half of the rows, B comes from
    another window instead.
    """

    def __init__(self, tokenizer: Tokenizer, seq_len: int):
        if seq_len < _LEAST:
            raise ConfigError(f"seq_len={seq_len}: a pair of sentences needs {_LEAST} tokens or more")
        self.tokenizer, self.seq_len = tokenizer, seq_len

    def __call__(self, tokens: np.ndarray, others: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """int tokens [B, T - 3] twice, to tokens, segment_ids, types [B, T] and next_sentence [B] (0: B follows A)."""
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        apart = draws(keys, 2, 4)
        out = np.full((len(tokens), self.seq_len), end, np.int32)
        segments, types = np.zeros_like(out), np.zeros_like(out)
        for row, (own, other) in enumerate(zip(tokens, others, strict=True)):
            here = _longest(own, end)
            cut = max(round(len(here) * (0.25 + 0.5 * apart[row, 1])), 1)
            first, second = here[:cut], here[cut:]
            if apart[row, 0] < 0.5:
                second = _longest(other, end)[-max(len(second), 1) :]
            whole = np.concatenate([[start], first, [end], second, [end]])
            out[row, : len(whole)], segments[row, : len(whole)] = whole, 1
            types[row, len(first) + 2 : len(whole)] = 1
        labels = (apart[:, 0] < 0.5).astype(np.int32)
        return {"tokens": out, "segment_ids": segments, "types": types, "next_sentence": labels}


def _longest(tokens: np.ndarray, end_id: int) -> np.ndarray:
    """The longest stretch without an end."""
    edges = np.concatenate([[-1], np.flatnonzero(tokens == end_id), [len(tokens)]])
    at = int(np.argmax(np.diff(edges)))
    return tokens[edges[at] + 1 : edges[at + 1]]
