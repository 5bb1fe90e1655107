"""Conversations as text: Jinja templates as Hugging Face's tokenizers have them, and which characters are answers."""

import datetime
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmkit.config.base import ConfigError, UserError
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.sources.files import read_bytes

ASSISTANT = "assistant"
NO_TEMPLATE = "none"  # as data.message_format says, whatever init_from has
_SUFFIXES = (".jinja", ".jinja2", ".j2")
TODAY = datetime.datetime(2025, 1, 1)  # what templates are told: a store must not depend on the day it is built


class Piece(NamedTuple):
    """A stretch of a conversation's text, and whether it is an answer, with what ends it."""

    text: str
    answer: bool


class ChatTemplate:
    """A template in a sandbox: no attribute, call or change that could leave it."""

    def __init__(self, source: str, end_token: str, start_token: str = ""):
        """Raises ConfigError where jinja2 is missing or the text is not Jinja."""
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ConfigError("tokenizer.chat_template needs jinja2: pip install 'lmkit[chat]'") from error
        self.source, self.error = source, TemplateError
        self.tokens = {"eos_token": end_token, "bos_token": start_token or end_token}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": self._raise, "strftime_now": TODAY.strftime}
        try:
            self.template = environment.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", "?")
            raise ConfigError(f"tokenizer.chat_template is not a template: line {line}: {error}") from error

    def _raise(self, message: str) -> None:
        raise self.error(message)

    def render(self, messages: Sequence[dict[str, Any]], place: str, prompt: bool = False, **more: Any) -> str:
        """The text of a conversation; with `prompt` up to where an answer begins. Raises ConfigError naming `place`.

        `more`: further variables of the template, such as `tools`.
        """
        try:
            return self.template.render(messages=list(messages), add_generation_prompt=prompt, **self.tokens, **more)
        except UserError:
            raise
        except Exception as error:  # a template may fail in any way
            raise ConfigError(f"data: {place}: tokenizer.chat_template: {type(error).__name__}: {error}") from error

    def pieces(self, messages: Sequence[dict[str, Any]], place: str) -> list[Piece]:
        """The conversation's text, cut where its answers begin and end.

        Where an answer stands is found by what the template writes of the messages before it and up to it. What ends
        an answer belongs to it: a model has to learn to end. Raises ConfigError where a message changes what is
        written of those before it, or an answer is not written.
        """
        for number, message in enumerate(messages, 1):
            words = ("role", "content") if isinstance(message, dict) and message.get("role") == ASSISTANT else ("role",)
            if not isinstance(message, dict) or not all(isinstance(message.get(word), str) for word in words):
                raise ConfigError(f"data: {place}: message {number} is {message!r:.60}; it needs a role and a content")
        whole, pieces, at = self.render(messages, place), [], 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            upto = self.render(messages[: number + 1], place)
            before = self._before(messages[:number], upto, place)
            content = message["content"].strip()
            first = upto.find(content, len(before))
            if not whole.startswith(upto) or len(before) < at or first < 0:
                raise ConfigError(
                    f"data: {place}: tokenizer.chat_template writes message {number + 1} otherwise when others follow "
                    f"it, or not at all, so that nobody can tell where the answer stands: use a template that "
                    f"writes each message for itself"
                )
            first = len(before) if not upto[len(before) : first].strip() else first
            pieces += [Piece(whole[at:first], False), Piece(whole[first : len(upto)], True)]
            at = len(upto)
        return [piece for piece in [*pieces, Piece(whole[at:], False)] if piece.text]

    def _before(self, messages: Sequence[dict[str, Any]], upto: str, place: str) -> str:
        """What is written before an answer: with the beginning of the answer's own message, if the template has it."""
        if not messages:
            return ""
        found = (self.render(messages, place, prompt) for prompt in (True, False))
        return next((text for text in found if upto.startswith(text)), upto + " ")


def template_source(config: TokenizerConfig) -> str:
    """The text of tokenizer.chat_template, read where it names a file; "" where there is none."""
    source = "" if config.chat_template == NO_TEMPLATE else config.chat_template
    if source.lower().endswith(_SUFFIXES) and "\n" not in source:
        source = read_bytes(source).decode(errors="replace")
    return source


def load_chat_template(config: TokenizerConfig) -> ChatTemplate | None:
    """That of tokenizer.chat_template; None where there is none."""
    source = template_source(config)
    return ChatTemplate(source, config.end_token, config.start_token) if source else None


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """As text, not as HTML: Jinja's own filter writes < as \\u003c."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _generation() -> type:
    """The tag `{% generation %}` that some templates put around answers: what is in it, and nothing else."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    return Generation
