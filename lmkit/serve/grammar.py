"""Texts of a given form: JSON, JSON of a schema, a regular expression, calls of tools; by llguidance.

A mask over the vocabulary says before each token which may come. It is made on the engine's thread, in tens of
microseconds for most states; a grammar is compiled before the request is queued.
"""

import json
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

from lmkit.serve.errors import bad
from lmkit.serve.vocabulary import Vocabulary
from lmkit.weights import Codec

# White space between the parts of a JSON text: some models write it in lines, none may write it without end.
_SPACE: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,24}"}
CALL, CALL_END = "<tool_call>", "</tool_call>"


class Constraint:
    """A `Grammar` of lmkit.decode.request: where one text stands in its grammar."""

    def __init__(self, matcher: Any, size: int):
        self._matcher, self._size = matcher, size

    def mask(self) -> np.ndarray:
        """bool [V]: which tokens may come next; an end token where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little").astype(bool)[: self._size]
        return np.pad(mask, (0, self._size - len(mask)))

    def accept(self, token: int) -> bool:
        """Takes the token that came; False where nothing can follow it."""
        return self._matcher.consume_token(token) and not self._matcher.is_stopped()

    def fresh(self) -> "Constraint":
        """The same grammar from its beginning, for another text."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return Constraint(matcher, self._size)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, codec: Codec, vocabulary: Vocabulary):
        self.eos_token_id, self.tokens = codec.end_ids[0], vocabulary.pieces
        self.special_token_ids, self._encode = sorted({*vocabulary.special, *codec.end_ids}), codec.bare

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


class Grammars:
    """Compiles grammars for one vocabulary.

    Args:
        size: V of the masks.
    """

    def __init__(self, codec: Codec, vocabulary: Vocabulary, size: int):
        self._size, self._tokens = size, None
        if codec.end_ids:
            wrapped = llguidance.TokenizerWrapper(_Tokens(codec, vocabulary))
            self._tokens = llguidance.LLTokenizer(wrapped, eos_token=list(codec.end_ids))

    def json(self, schema: dict[str, Any], param: str) -> Constraint:
        """Texts of a JSON schema. Raises Refused where it is none, or has a keyword that cannot be kept to."""
        return self._compiled(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_SPACE), param)

    def regex(self, pattern: str, param: str) -> Constraint:
        """Texts that a regular expression (of Rust's crate regex) matches as a whole."""
        return self._compiled(llguidance.LLMatcher.grammar_from_regex(pattern), param)

    def calls(self, tools: Sequence[dict[str, Any]], param: str) -> Constraint:
        """One call of one of the tools, in the spelling <tool_call>{"name", "arguments"}</tool_call>."""
        forms = [
            {
                "type": "object", "required": ["name", "arguments"], "additionalProperties": False,
                "properties": {
                    "name": {"const": one["name"]}, "arguments": one.get("parameters") or {"type": "object"},
                },
            }
            for one in tools
        ]  # fmt: skip
        schema = {"anyOf": forms, "x-guidance": _SPACE}
        lark = f'start: "{CALL}\\n" call "\\n{CALL_END}"\ncall: %json {json.dumps(schema)}'
        return self._compiled(llguidance.LLMatcher.grammar_from_lark(lark), param)

    def _compiled(self, grammar: str, param: str) -> Constraint:
        if self._tokens is None:
            raise bad(param, f"{param}: the model's tokenizer names no token that ends a text")
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise bad(param, f"{param}: {' '.join(matcher.get_error().split())[:300]}", "invalid_grammar")
        return Constraint(matcher, self._size)
