"""The special tokens of a folder in the Hugging Face layout, as transformers takes them from its files.

tokenizer.json's post-processor says what stands around a text, tokenizer_config.json and special_tokens_map.json name
tokens, generation_config.json and config.json give ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.sections.tokenizer import TokenizerConfig

_PROBES = ("a", "the", "1", ".")
_NAMES = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token", "pad_token", "unk_token")


_IDS = ("no_timestamps_token_id", "max_initial_timestamp_index", "prev_sot_token_id")


class Specials(NamedTuple):
    """Special tokens as text; "" where the folder has none."""

    start: str = ""  # of a row of an encoder, and `bos_token` of a chat template
    end: str = ""
    mask: str = ""
    pad: str = ""
    unknown: str = ""
    source_start: tuple[str, ...] = ()  # what the file puts before a text
    target_start: tuple[str, ...] = ()  # what a decoder's target begins with
    pair_ends: int = 1  # end tokens between two texts of a row
    chat_template: str = ""

    def into(self, config: TokenizerConfig) -> dict[str, Any]:
        """The keys of a configuration that they give a value to: those that are at their defaults."""
        found = {
            "end_token": self.end, "start_token": self.start, "mask_token": self.mask,
            "source_start": list(self.source_start), "target_start": list(self.target_start),
            "pair_ends": self.pair_ends, "chat_template": self.chat_template,
        }  # fmt: skip
        plain = TokenizerConfig()
        return {name: value for name, value in found.items() if value and getattr(config, name) == getattr(plain, name)}


class Rules(NamedTuple):
    """What the files of a folder ask of decoding, besides its start and its ends."""

    forced: tuple[int | None, ...] = ()  # after the start; None for a language that is to be found
    suppress: tuple[int, ...] = ()  # never chosen
    suppress_first: tuple[int, ...] = ()  # not chosen first
    languages: Mapping[str, int] = {}
    tasks: Mapping[str, int] = {}
    no_timestamps: int | None = None  # the token of 0 seconds follows it
    latest_stamp: int | None = None  # places after 0 that a text's first time stamp has at most
    previous: int | None = None  # before a text that came before


def read_rules(ids: Mapping[str, Any], vocab_size: int) -> Rules:
    """Of the keys of generation_config.json.

    Raises ConfigError where forced_decoder_ids leave a place out, or a key is not of its type.
    """
    try:
        return _rules(ids, vocab_size)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        keys = ("forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens", "lang_to_id", "task_to_id", *_IDS)
        found = ", ".join(f"{key}={ids[key]!r:.60}" for key in keys if key in ids)
        raise ConfigError(f"generation_config.json: one of {found} is damaged ({error}); fetch it again") from error


def _rules(ids: Mapping[str, Any], vocab_size: int) -> Rules:
    forced = sorted((place, token) for place, token in ids.get("forced_decoder_ids") or [])
    if [place for place, _ in forced] != list(range(1, len(forced) + 1)):
        raise ConfigError(f"forced_decoder_ids={forced}: the places must be 1, 2, ... without a gap")
    tokens = [token for _, token in forced]
    if not tokens and ids.get("forced_bos_token_id") is not None:
        tokens = [ids["forced_bos_token_id"]]

    def known(name: str) -> tuple[int, ...]:
        return tuple(token for token in ids.get(name) or () if 0 <= token < vocab_size)

    if wrong := [name for name in _IDS if type(ids.get(name)) not in (int, type(None))]:
        raise TypeError(f"{wrong[0]} is no number")
    languages = {name.strip("<|>"): token for name, token in (ids.get("lang_to_id") or {}).items()}
    return Rules(
        tuple(tokens), known("suppress_tokens"), known("begin_suppress_tokens"), languages,
        ids.get("task_to_id") or {}, *(ids.get(name) for name in _IDS),
    )  # fmt: skip


def read_specials(folder: Path, inner: tokenizers.Tokenizer) -> Specials:
    """Those of a folder whose tokenizer.json is `inner`. Raises ConfigError for a file that is not JSON."""
    ids, settings = special_ids(folder), _read(folder / "tokenizer_config.json")
    named = _named(_read(folder / "special_tokens_map.json")) | _named(settings)

    def token(name: str) -> str:
        number = None if named else ids.get(f"{name}_id")  # a model's ids count where the tokenizer's files say nothing
        number = number[0] if isinstance(number, list) and number else number
        found = named.get(name) or (inner.id_to_token(number) if isinstance(number, int) else None)
        return found if found and inner.token_to_id(found) is not None else ""

    before, after, between = _around(inner)
    end = (after[0] if after else "") or token("eos_token") or token("sep_token")
    start = (before[0] if before else "") or (token("bos_token") or token("cls_token"))
    first = ids.get("decoder_start_token_id")
    if first is None and ids.get("is_encoder_decoder"):
        first = ids.get("bos_token_id")
    decoder = [] if first is None else [inner.id_to_token(first) or ""]
    target = [*decoder, *(before[1:] if before[:1] == decoder else before)] if decoder else []
    ends_between = len(between) if between and set(between) == {end} else 1
    return Specials(
        start, end, token("mask_token"), token("pad_token"), token("unk_token"), tuple(before), tuple(target),
        ends_between, _as_text(_chat_template(folder, settings)),
    )  # fmt: skip


def special_ids(folder: Path) -> dict[str, Any]:
    """The keys of config.json and, before them, of generation_config.json, as transformers reads them.

    Raises ConfigError for a ..._token_id that is no id.
    """
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        for key, value in _read(folder / name).items():
            ids = value if isinstance(value, list) else [value]
            wrong = not ids or not all(type(one) is int and one >= 0 for one in ids)
            if key.endswith("_token_id") and value is not None and wrong:
                raise ConfigError(f"{folder / name}: {key}={value!r:.60} is no id of a token; fetch it again")
            found |= {} if value is None else {key: value}
    return found


def _around(inner: tokenizers.Tokenizer) -> tuple[list[str], list[str], list[str]]:
    """What the post-processor puts before a text, after it, and between two."""
    for probe in _PROBES:
        plain = inner.encode(probe, add_special_tokens=False).tokens
        one, two = inner.encode(probe).tokens, inner.encode(probe, probe).tokens
        at = next((n for n in range(len(one)) if plain and one[n : n + len(plain)] == plain), None)
        if at is not None:
            before, after = one[:at], one[at + len(plain) :]
            return before, after, two[at + len(plain) : len(two) - len(after) - len(plain)]
    return [], [], []


def _named(values: dict[str, Any]) -> dict[str, str]:
    """Names of special tokens and their texts, which may stand in an object with flags."""
    found = {name: values.get(name) for name in _NAMES}
    texts = {name: one.get("content") if isinstance(one, dict) else one for name, one in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def _as_text(template: str) -> str:
    """A template that is never taken for the name of a file: with a line end, which Jinja leaves out."""
    return template and template.removesuffix("\n") + "\n"


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    """A file of its own before tokenizer_config.json; of several the default one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = settings.get("chat_template") or ""
    if isinstance(found, list):
        found = next((one.get("template", "") for one in found if one.get("name") == "default"), "")
    return found if isinstance(found, str) else ""


def _read(file: Path) -> dict[str, Any]:
    return read_document(file) if file.is_file() else {}
