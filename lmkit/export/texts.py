"""What an export says of texts and classes: special tokens, their ids, the chat template, names of classes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.saved import RUN_FILE, TOKENIZER_SETTINGS, from_plain, read_tokenizer
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.task import MASKS
from lmkit.data.tokens.chat import load_chat_template
from lmkit.data.tokens.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer
from lmkit.interop.names import TOKENIZER_FILES
from lmkit.weights import Form, SavedModel, start_tokenizer
from lmkit.weights.labels import run_labels

Json = dict[str, Any]
# Keys of a folder's config.json that go along, beside the ids of special tokens.
_KEPT = ("id2label", "label2id", "problem_type", "forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens")


class Texts(NamedTuple):
    """A folder with tokenizer files ("": none), keys for config.json, and a line on what could not be said."""

    folder: str
    keys: Json
    note: str = ""


def texts_of(saved: SavedModel, place: Path) -> Texts:
    """What the source of a model says of texts and classes; files that have to be made are written to `place`."""
    source = saved.source
    if source.form is Form.folder:
        return _of_folder(source.path)
    if isinstance(saved.config, ViTConfig):
        return Texts("", _class_names(source.home, saved.config))
    if source.form is Form.gguf:
        return _of_gguf(source.path, saved.config, place)
    names = _class_names(source.home, saved.config)
    file = source.home / "tokenizer.json"
    if not file.is_file():
        return Texts("", names, "without a tokenizer: there was none")
    run = read_document(source.home / RUN_FILE) if (source.home / RUN_FILE).is_file() else {}
    settings = _settings(run, source.home)
    try:
        codec = load_tokenizer(file, settings)
    except ConfigError as error:
        return Texts(str(file), names, f"nothing says what ends a text: {error}")
    keys = _ids(saved.config, codec.end_id, codec.start_id)
    if isinstance(codec, ByteTokenizer):
        return Texts("", keys | names, "without a tokenizer: bytes are no tokenizer of theirs")
    assert isinstance(codec, FastTokenizer)
    tokens = {"bos": settings.start_token or settings.end_token, "eos": settings.end_token, "pad": settings.end_token}
    if isinstance(saved.config, GPTConfig):
        tokens["bos"] = settings.end_token
    if isinstance(saved.config, BERTConfig):
        tokens |= {"cls": tokens["bos"], "sep": settings.end_token}
        mask = next(
            (one for one in (settings.mask_token, *MASKS) if one and codec.inner.token_to_id(one) is not None), ""
        )
        tokens |= {"mask": mask} if mask else {}
    _write(place, codec.inner, saved.config, tokens, keys, _template(run, settings))
    return Texts(str(place), keys | names)


def _settings(run: Json, home: Path) -> TokenizerConfig:
    """A run's; with tokenizer=init, of older runs, those of what it began with, where that is still there."""
    if (home / TOKENIZER_SETTINGS).is_file():
        return read_tokenizer(home)
    settings = from_plain(TokenizerConfig, run.get("tokenizer") or {}, f"{home}: tokenizer")
    start = run.get("init_from")
    if settings.kind is TokenizerKind.init and isinstance(start, str) and start and Path(start).exists():
        return start_tokenizer(settings, start)
    return settings


def _of_folder(folder: Path) -> Texts:
    """Of a folder of theirs: its own files, and what its configuration says."""
    theirs = read_document(folder / "config.json")
    inner = theirs.get("text_config")
    theirs = (inner if isinstance(inner, dict) else {}) | theirs
    keys = {key: value for key, value in theirs.items() if key.endswith("_token_id") or key in _KEPT}
    there = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return Texts(str(folder) if there else "", keys, "" if there else "without a tokenizer: there was none")


def _of_gguf(path: Path, config: Any, place: Path) -> Texts:
    try:
        inner, begin, end = interop.read_gguf_tokenizer(path)
    except ConfigError as error:
        return Texts("", {}, f"without a tokenizer: {error}")
    names = {name: inner.id_to_token(ids[0]) or "" for name, ids in (("bos", begin), ("eos", end), ("pad", end)) if ids}
    keys: Json = {"bos_token_id": begin[0] if begin else None, "eos_token_id": end[0] if len(end) == 1 else end or None}
    _write(place, inner, config, names, keys, "", begins=begin)
    return Texts(str(place), keys)


def _ids(config: Any, end: int, start: int) -> Json:
    """Ids of special tokens by their keys, as rows of training have them."""
    start = end if isinstance(config, GPTConfig) else start  # a document begins after the end of another
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    if isinstance(config, EncDecConfig):
        ids |= {"decoder_start_token_id": start, "forced_eos_token_id": end}
    return ids | ({"cls_token_id": start, "sep_token_id": end} if isinstance(config, BERTConfig) else {})


def _write(
    place: Path, inner: Any, config: Any, tokens: dict[str, str], keys: Json, template: str, begins: Any = None
) -> None:
    """tokenizer.json that puts special tokens where rows of training have them, and the files that name them."""
    state = json.loads(inner.to_str()) | {"truncation": None, "padding": None}
    has_start = isinstance(config, GPTConfig | BERTConfig) if begins is None else bool(begins)
    start = [tokens["bos"]] if has_start else []
    end = [] if isinstance(config, GPTConfig) else [tokens["eos"]]
    if used := {*start, *end}:
        ids = {token: inner.token_to_id(token) for token in used}
        made = _template_processing(start, end, ids, types=getattr(config, "type_vocab_size", 0) > 1)
        before = state["post_processor"]
        keep = before is not None and before["type"] == "ByteLevel"  # it moves offsets alone
        state["post_processor"] = {"type": "Sequence", "processors": [before, made]} if keep else made
    (place / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False) + "\n", encoding="utf-8")
    said: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    said |= {f"{name}_token": token for name, token in tokens.items()}
    towers = config.towers().values()
    said["model_max_length"] = min(one.max_seq_len for one in towers if one.vocab_size)
    types = isinstance(config, BERTConfig) and config.type_vocab_size > 1
    said["model_input_names"] = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    said |= {"chat_template": template} if template else {}
    (place / "tokenizer_config.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if isinstance(config, GPTConfig | EncDecConfig):
        (place / "generation_config.json").write_text(json.dumps(keys, indent=2) + "\n")


def _template_processing(start: list[str], end: list[str], ids: dict[str, int], types: bool) -> Json:
    """A post-processor of tokenizers: start A end, and start A end B end."""

    def row(*parts: tuple[str, str, int]) -> list[Json]:
        return [{kind: {"id": name, "type_id": one if types else 0}} for kind, name, one in parts]

    first = [("SpecialToken", one, 0) for one in start], [("SpecialToken", one, 0) for one in end]
    single = [*first[0], ("Sequence", "A", 0), *first[1]]
    pair = [*single, ("Sequence", "B", 1), *(("SpecialToken", one, 1) for one in end)]
    special = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()}
    return {"type": "TemplateProcessing", "single": row(*single), "pair": row(*pair), "special_tokens": special}


def _template(run: Json, settings: TokenizerConfig) -> str:
    """A run's chat template; of a run on conversations without one what data.message_format says, as Jinja."""
    if settings.chat_template:
        found = load_chat_template(settings)
        return found.source if found else ""
    if (run.get("objective") or {}).get("kind") != "chat":
        return ""
    format = (run.get("data") or {}).get("message_format") or DataConfig().message_format
    before, after = format.split("{content}", 1)
    parts = json.dumps(before).split("{role}")
    head = '" ~ message["role"] ~ "'.join(parts)
    prompt = json.dumps(before.replace("{role}", "assistant"))
    return (
        "{{ eos_token }}{% for message in messages %}"
        f'{{{{ {head} ~ message["content"] ~ {json.dumps(after)} ~ eos_token }}}}'
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


def _class_names(run: Path, config: Any) -> Json:
    """id2label and label2id of a classifier, from the run's receipt."""
    if not (names := run_labels(run, config)):
        return {}
    return {"id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)}}  # fmt: skip
