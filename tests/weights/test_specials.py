"""The special tokens of a folder are those that transformers uses, and rows are the ones that it makes.

The parity needs transformers (extra `parity`); the folders are tiny and made here.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

from lmkit.config import ConfigError
from lmkit.config.saved import read_tokenizer, write_tokenizer
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.fields import RecordRows, Texts
from lmkit.data.batches.text_fields import Captions, SourceTexts, Targets
from lmkit.data.tokens.chat import NO_TEMPLATE, load_chat_template
from lmkit.data.tokens.tokenizer import Tokenizer as AnyTokenizer
from lmkit.data.tokens.tokenizer import load_tokenizer
from lmkit.weights import start_tokenizer
from lmkit.weights.specials import read_rules, read_specials

INIT = TokenizerConfig(kind=TokenizerKind.init)
TEXT, PAIR = "some words", "and more"


class Folder(NamedTuple):
    """A family's special tokens in the order of their ids, its post-processor and what its files say."""

    tokens: list[str]
    processor: Any
    settings: dict[str, Any]
    config: dict[str, Any]


def template(single: str, tokens: list[str], pair: str = "") -> Any:
    used = [(token, tokens.index(token)) for token in dict.fromkeys((single + " " + pair).split()) if token[0] != "$"]
    return TemplateProcessing(single=single, pair=pair or None, special_tokens=used)


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
T5 = ["<pad>", "</s>", "<unk>"]
LLAMA = ["<unk>", "<s>", "</s>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WHISPER = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
FOLDERS = {
    "bert": Folder(BERT, BertProcessing(("[SEP]", 3), ("[CLS]", 2)), {
        "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]",
    }, {"model_type": "bert"}),
    "roberta": Folder(ROBERTA, RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False), {
        "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
        "mask_token": {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}, "unk_token": "<unk>",
    }, {"model_type": "roberta"}),
    "t5": Folder(T5, template("$A </s>", T5, "$A </s> $B </s>"), {
        "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
    }, {"model_type": "t5", "is_encoder_decoder": True, "decoder_start_token_id": 0, "eos_token_id": 1}),
    "bart": Folder(ROBERTA, RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False), {
        "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
        "mask_token": "<mask>", "unk_token": "<unk>",
    }, {"model_type": "bart", "is_encoder_decoder": True, "decoder_start_token_id": 2, "bos_token_id": 0}),
    "llama": Folder(LLAMA, template("<s> $A", LLAMA, "<s> $A <s> $B"), {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": CHAT,
    }, {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}),
    "gemma": Folder(GEMMA, template("<bos> $A", GEMMA), {
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
    }, {"model_type": "gemma", "eos_token_id": [1, 4]}),
    "qwen": Folder(QWEN, None, {
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
    }, {"model_type": "qwen2", "bos_token_id": 0, "eos_token_id": [2, 0]}),
    "whisper": Folder(WHISPER, template("<|startoftranscript|> <|notimestamps|> $A <|endoftext|>", WHISPER), {
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }, {"model_type": "whisper", "is_encoder_decoder": True, "decoder_start_token_id": 1, "bos_token_id": 0}),
}  # fmt: skip


def make(name: str, folder: Path, **changes: Any) -> Path:
    """A folder with a byte-level vocabulary and no weights."""
    about, path = FOLDERS[name], folder / name
    path.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({one: n for n, one in enumerate([*about.tokens, *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(about.tokens)
    if about.processor is not None:
        inner.post_processor = about.processor
    inner.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | about.settings | changes
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps(about.config))
    return path


def ours(path: Path, config: TokenizerConfig = INIT) -> tuple[TokenizerConfig, AnyTokenizer]:
    found = start_tokenizer(config, str(path))
    return found, load_tokenizer(found.path, found)


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="LOUD: special tokens are not compared with transformers; pip install 'lmkit[parity]'"
    )
    return lambda path: transformers.PreTrainedTokenizerFast.from_pretrained(path)


@pytest.mark.parametrize("name", FOLDERS)
def test_special_tokens_are_theirs(name: str, tmp_path: Path, theirs: Any) -> None:
    path = make(name, tmp_path)
    config, codec = ours(path)
    found, them = read_specials(path, Tokenizer.from_file(str(path / "tokenizer.json"))), theirs(path)
    assert config.end_token == (them.eos_token or them.sep_token)
    assert config.mask_token == (them.mask_token or "")
    assert (found.pad, found.unknown) == (them.pad_token or "", them.unk_token or "")
    around = them("").input_ids
    assert found.start == (them.decode(around[:1]) if around[:1] != [codec.end_id] else them.bos_token or "")
    first = FOLDERS[name].config.get("decoder_start_token_id")
    assert (codec.target_start_ids[0] == first) if first is not None else (config.target_start == [])


def rows(codec: AnyTokenizer, **texts: str) -> RecordRows:
    columns = {name: [codec.encode_batch([text])[0]] for name, text in texts.items()}
    return RecordRows(columns, np.zeros(1, np.uint64), False)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_rows_of_an_encoder_are_theirs(name: str, tmp_path: Path, theirs: Any) -> None:
    path = make(name, tmp_path)
    _, codec = ours(path)
    them = theirs(path)
    for key, texts in (("", {"text": TEXT}), ("pair", {"text": TEXT, "pair": PAIR})):
        batch = Texts(DataConfig(seq_len=40, pair_key=key), codec).collate(rows(codec, **texts))
        expected = them(*texts.values(), return_token_type_ids=True)
        real = batch["segment_ids"][0] == 1
        assert batch["inputs"][0][real].tolist() == expected.input_ids
        assert "types" not in batch or name == "roberta" or batch["types"][0][real].tolist() == expected.token_type_ids
    short = Texts(DataConfig(seq_len=12, pair_key="pair"), codec).collate(rows(codec, text=TEXT, pair=PAIR))
    assert (short["segment_ids"] == 1).all()
    assert short["inputs"][0, -1] == codec.end_id, "the ends are not cut"
    assert "types" not in Texts(DataConfig(pair_key="pair"), codec, kinds=1).shapes


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_rows_of_an_encoder_decoder_are_theirs(name: str, tmp_path: Path, theirs: Any) -> None:
    """The decoder's input is their labels, moved by one as their models do."""
    path = make(name, tmp_path)
    _, codec = ours(path)
    labels, start = theirs(path)(TEXT).input_ids, FOLDERS[name].config["decoder_start_token_id"]
    labels = labels[1:] if labels[0] == start else labels  # as the collators for speech do
    batch = Targets(DataConfig(seq_len=40), codec).collate(rows(codec, target=TEXT))
    real = batch["segment_ids"][0] == 1
    assert batch["targets"][0][real].tolist() == labels
    assert batch["inputs"][0][real].tolist() == [start, *labels[:-1]]
    if name == "whisper":
        return
    source = SourceTexts(DataConfig(seq_len=40), codec).collate(rows(codec, source=TEXT))
    assert source["source"][0][source["source_segment_ids"][0] == 1].tolist() == theirs(path)(TEXT).input_ids
    caption = Captions(DataConfig(seq_len=8), codec).collate(rows(codec, caption=TEXT))["inputs"][0]
    assert caption.tolist() == [*codec.source_start_ids, *caption[len(codec.source_start_ids) : -1], codec.end_id]


def test_a_chat_template_gets_their_tokens(tmp_path: Path, theirs: Any) -> None:
    path = make("llama", tmp_path)
    config, _ = ours(path)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    chat = load_chat_template(config)
    assert chat is not None
    assert chat.render(talk, "") == theirs(path).apply_chat_template(talk, tokenize=False) == "<s>hi</s>yes</s>"
    config, _ = ours(path, dataclasses.replace(INIT, chat_template=NO_TEMPLATE))
    assert load_chat_template(config) is None


def test_what_is_asked_for_stays_and_older_files_are_read(tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    config, _ = ours(path, dataclasses.replace(INIT, end_token="[PAD]", mask_token="[UNK]"))
    assert (config.end_token, config.mask_token, config.start_token) == ("[PAD]", "[UNK]", "[CLS]")
    (path / "tokenizer_config.json").unlink()
    (path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "[MASK]"}}))
    config, _ = ours(path)
    assert (config.end_token, config.mask_token, config.start_token) == ("[SEP]", "[MASK]", "[CLS]")
    path = make("gemma", tmp_path)
    (path / "tokenizer_config.json").unlink()
    assert ours(path)[0].end_token == "<eos>", "of config.json"
    (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<pad>"}))
    assert ours(path)[0].end_token == "<pad>"
    (path / "special_tokens_map.json").unlink()
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    assert ours(path)[0].end_token == "<end_of_turn>"
    (path / "generation_config.json").write_text('{"eos_token')
    with pytest.raises(ConfigError, match=r"generation_config.json is no JSON"):
        ours(path)


def test_the_template_of_a_folder_opens_no_file(tmp_path: Path) -> None:
    """Text that looks like a path is a template all the same: only the user's own key names files."""
    (secret := tmp_path / "secret.jinja").write_text("secret")
    path = make("gemma", tmp_path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": str(secret)}))
    chat = load_chat_template(ours(path)[0])
    assert chat is not None
    assert chat.render([{"role": "user", "content": "hi"}], "") == str(secret)


def test_a_run_keeps_what_was_found(tmp_path: Path) -> None:
    """Its tokenizer.yaml is enough for the next run; of older runs config.yaml is read."""
    config, codec = ours(make("bart", tmp_path))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    codec.save(run / "tokenizer.json")
    write_tokenizer(run, config)
    for path in (run, run / "checkpoints"):
        again, same = ours(path)
        assert again == dataclasses.replace(config, path=str(run / "tokenizer.json"))
        assert same.sha256() == codec.sha256()
    (run / "tokenizer.yaml").unlink()
    (run / "config.yaml").write_text("tokenizer: {kind: bpe, end_token: <s>}")
    assert read_tokenizer(run).end_token == ours(run)[0].end_token == "<s>"
    (run / "config.yaml").write_text("tokenizer: {kind: [")
    with pytest.raises(ConfigError, match=r"config.yaml is no YAML"):
        read_tokenizer(run)


@pytest.mark.parametrize("damage", [
    {"forced_decoder_ids": 3}, {"forced_decoder_ids": [1]}, {"suppress_tokens": [None]}, {"suppress_tokens": 7},
    {"lang_to_id": [1]}, {"forced_decoder_ids": [[1, "x"], ["a", 2]]},
])  # fmt: skip
def test_rules_of_a_wrong_type_are_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(damage))}="):
        read_rules(damage, 100)
