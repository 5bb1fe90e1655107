"""A tokenizer.json as the tokenizer of a GGUF file: what llama.cpp cuts text and merges pieces by."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.interop.gguf_tokenizer import BYTE, CONTROL, NORMAL, PATTERNS, UNKNOWN, UNUSED, USER, WHOLE

Json = dict[str, Any]
_SPACE = "▁"
_WAY_OUT = "set export.format=huggingface or stablehlo"


@dataclass(frozen=True)
class Vocabulary:
    """The keys `tokenizer.*` of a GGUF file.

    Attributes:
        model: "gpt2" (byte-level BPE), "llama" (SentencePiece's BPE), or "no_vocab".
        pre: how text is cut before merging; "" for llama.
        tokens, kinds: of each id; kinds as llama.cpp numbers them.
        merges: of gpt2, "left right". scores: of llama, the higher the sooner merged.
        ids: bos, eos, eot, padding, unknown, as far as there are any.
        begins: whether a text begins with bos.
        space: whether a text of llama's gets a space before it.
        template: of conversations, Jinja; "" for none.
    """

    model: str = "no_vocab"
    pre: str = ""
    tokens: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    begins: bool = False
    space: bool = False
    template: str = ""


def read_vocabulary(source: str | Path, keys: Json, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json, or of a folder with one; none where `source` is "".

    Args:
        keys: of config.json and generation_config.json: ids of special tokens.
        rows: of the model's table; ids without a token are filled up.

    Raises ConfigError for a tokenizer that llama.cpp does not have.
    """
    if not source:
        return Vocabulary()
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    file = folder / "tokenizer.json" if Path(source).is_dir() else Path(source)
    if not file.is_file():
        raise ConfigError(f"{folder}: no tokenizer.json there, which GGUF's tokenizer is made of; {_WAY_OUT}")
    state = read_document(file, dict, "fetch it again")
    model = state.get("model") or {}
    if model.get("type", "BPE" if "merges" in model else "") != "BPE":
        raise ConfigError(f"{file}: its tokenizer is a {model.get('type')}, and llama.cpp's of such models are BPE; "
                          f"{_WAY_OUT}")  # fmt: skip
    tokens, kinds = _tokens(state, rows, file)
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    begin = _begin(state)
    ids = _ids(keys, state, begin, len(tokens))
    found = Vocabulary(tokens=tokens, kinds=kinds, ids=ids, begins=begin is not None, template=_template(folder))
    if model.get("byte_fallback"):
        space = _space(state, file)
        return replace(found, model="llama", scores=_scores(tokens, pairs), space=space)
    pre = _cut(state, file)
    if bool(model.get("ignore_merges")) != (pre in WHOLE):
        raise ConfigError(f"{file}: ignore_merges={str(bool(model.get('ignore_merges'))).lower()} with the cut "
                          f"{pre!r} is not llama.cpp's; {_WAY_OUT}")  # fmt: skip
    return replace(found, model="gpt2", pre=pre, merges=[" ".join(pair) for pair in pairs])


def _tokens(state: Json, rows: int, file: Path) -> tuple[list[str], list[int]]:
    model, added = state["model"], {one["id"]: one for one in state.get("added_tokens") or []}
    named = {number: token for token, number in model["vocab"].items()} | {
        n: one["content"] for n, one in added.items()
    }
    if max(named) >= rows:
        raise ConfigError(f"{file} has the token {max(named)}, and the model a table of {rows}: it needs a row each")
    kinds = []
    for number in range(rows):
        token = named.get(number)
        if token is None:
            kinds.append(UNUSED)
        elif token == model.get("unk_token"):
            kinds.append(UNKNOWN)
        elif number in added:
            kinds.append(CONTROL if added[number].get("special") else USER)
        else:
            byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            kinds.append(BYTE if byte else NORMAL)
    return [named.get(number, f"[PAD{number}]") for number in range(rows)], kinds


def _cut(state: Json, file: Path) -> str:
    """llama.cpp's name of how a byte-level BPE cuts text. Raises ConfigError where it has none."""
    steps = _steps(state.get("pre_tokenizer"), "pretokenizers")
    last = steps.pop() if steps else {}
    normal = [one["type"] for one in _steps(state.get("normalizer"), "normalizers")]
    split = ""
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and normal in ([], ["NFC"]):
        if not steps:
            split = "gpt-2" if last.get("use_regex", True) else ""
        elif len(steps) == 1 and steps[0]["type"] == "Digits" and last.get("use_regex", True):
            split = "smollm" if steps[0].get("individual_digits") else ""
        elif len(steps) == 1 and steps[0]["type"] == "Split" and not last.get("use_regex", True):
            given = (steps[0].get("pattern") or {}).get("Regex"), steps[0].get("behavior"), steps[0].get("invert")
            split = next((name for name, one in PATTERNS.items() if given == (one, "Isolated", False)), "")
    if not split or (normal and split != "qwen2"):  # llama.cpp does not normalise; Qwen's NFC its converter drops, too
        raise ConfigError(f"{file}: its tokenizer cuts text in a way that llama.cpp has no name for; it has those of "
                          f"gpt-2, smollm, {', '.join(PATTERNS)}; {_WAY_OUT}")  # fmt: skip
    return split


def _space(state: Json, file: Path) -> bool:
    """Whether SentencePiece's BPE puts a space before a text. Raises ConfigError for another normalisation."""
    normal, steps = _steps(state.get("normalizer"), "normalizers"), _steps(state.get("pre_tokenizer"), "pretokenizers")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = {"type": "Prepend", "prepend": _SPACE}
    if normal in ([replaced], [before, replaced]) and _harmless(steps):
        return before in normal
    if not normal and len(steps) == 1 and steps[0]["type"] == "Metaspace" and not steps[0].get("split", True):
        return steps[0].get("prepend_scheme", "always") != "never"
    raise ConfigError(f"{file}: its tokenizer normalises text in a way that is not SentencePiece's BPE; {_WAY_OUT}")


def _harmless(steps: list[Json]) -> bool:
    """No cut, or Gemma's at spaces, of which its normaliser has left none."""
    return not steps or [(one["type"], one.get("pattern")) for one in steps] == [("Split", {"String": " "})]


def _scores(tokens: list[str], pairs: list[tuple[str, ...]]) -> list[float]:
    """llama.cpp merges the pair with the highest score of the piece that it makes: the rank of its first merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, 1e6)) for token in tokens]


def _begin(state: Json) -> str | None:
    """The token that tokenizer.json puts before a text; None where it puts none."""
    for step in _steps(state.get("post_processor"), "processors"):
        first = (step.get("single") or [{}])[0] if step.get("type") == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            return first["SpecialToken"]["id"]
    return None


def _ids(keys: Json, state: Json, begin: str | None, count: int) -> dict[str, int]:
    added = {one["content"]: one["id"] for one in state.get("added_tokens") or []}
    named = state["model"]["vocab"] | added
    ends = keys.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    ids = {
        "bos": named.get(begin) if begin else keys.get("bos_token_id"), "eos": ends[0],
        "eot": ends[1] if len(ends) > 1 else None, "eom": ends[2] if len(ends) > 2 else None,
        "padding": keys.get("pad_token_id"), "unknown": named.get(state["model"].get("unk_token")),
    }  # fmt: skip
    return {name: one for name, one in ids.items() if type(one) is int and 0 <= one < count}


def _template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    file = folder / "tokenizer_config.json"
    said = read_document(file).get("chat_template") if file.is_file() else None
    if isinstance(said, list):
        said = next((one.get("template") for one in said if one.get("name") == "default"), None)
    return said if isinstance(said, str) else ""


def _steps(said: Json | None, inner: str) -> list[Json]:
    """The steps of a part of tokenizer.json, of a sequence or of one."""
    return [] if not said else list(said[inner]) if said.get("type") == "Sequence" else [said]
