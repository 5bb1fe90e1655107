"""An export begins, ends and writes texts as the run does: read back by lmkit (and by transformers, if it is there)."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from interop.test_exchange import random_params

from helpers import tiny_config
from lmkit.config.saved import write_model
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import Activation, Position
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.export.texts import texts_of
from lmkit.interop import save_folder
from lmkit.weights import open_model

SMALL: dict[str, Any] = {"vocab_size": 300, "num_layers": 1, "num_heads": 2, "embed_dim": 16, "max_seq_len": 32}
BERT = BERTConfig(**SMALL, lm_head=False, num_classes=3)
MODELS: dict[str, Any] = {
    "llama": GPTConfig(**SMALL, gated=True),
    "lmkit": GPTConfig(**SMALL, logit_softcap=3.0),
    "bart": EncDecConfig(
        **SMALL, position=Position.learned, position_offset=2, embed_norm=True, activation=Activation.gelu
    ),
    "bert": BERT,
    "clip": CLIPConfig(
        text=GPTConfig(**SMALL, position=Position.learned, norm=BERT.norm, bias=True, tie_embeddings=True,
                       activation=Activation.quick_gelu),
        vision=ViTConfig(num_layers=1, num_heads=2, embed_dim=16, image_size=8, patch_size=4, num_classes=0,
                         patch_bias=False, embed_norm=True, activation=Activation.quick_gelu, norm_eps=1e-5),
        projection_dim=8,
    ),
}  # fmt: skip
SETTINGS = TokenizerConfig(vocab_size=270, end_token="<end>", start_token="<start>", special_tokens=["<x>"])
MESSAGES = [{"role": "user", "content": "some words"}, {"role": "assistant", "content": "more"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_bpe(["some words and some more words, again"] * 50, SETTINGS)


def make_run(run: Path, config: Any, codec: Any, labels: tuple[str, ...] = (), **sections: Any) -> Path:
    """A run's directory without parameters."""
    run.mkdir()
    write_model(run, config)
    codec.save(run / "tokenizer.json")
    settings = {"end_token": "<end>", "start_token": "<start>", "special_tokens": ["<x>"]}
    settings |= sections.pop("tokenizer", {})
    (run / "config.yaml").write_text(yaml.safe_dump({"tokenizer": settings} | sections))
    (run / "receipt.json").write_text(json.dumps({"data": {"records": {"labels": list(labels)}}}))
    return run


def export(run: Path, out: Path) -> dict[str, Any]:
    """What the verb does, with random parameters; returns config.json."""
    saved, place = open_model(str(run)), out.with_name("place")
    place.mkdir()
    texts = texts_of(saved, place)
    save_folder(
        out, saved.config, random_params(saved.config)[1], tokenizer=texts.folder, keys=texts.keys, fallback=True
    )
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("kind", MODELS)
def test_special_tokens_are_those_of_the_run(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", MODELS[kind], tokenizer, ("no", "maybe", "yes"))
    theirs = export(run, tmp_path / "out")
    assert theirs["model_type"] == kind
    end, start, words = tokenizer.end_id, tokenizer.start_id, tokenizer.encode_batch(["some words"])[0].tolist()
    place = theirs["text_config"] if kind == "clip" else theirs
    first = end if isinstance(MODELS[kind], GPTConfig) else start
    assert [place[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [first, end, end]
    codec = open_model(str(tmp_path / "out")).codec()
    expected = {"bart": [*words, end], "bert": [start, *words, end], "clip": [*words, end]}.get(kind, [end, *words])
    assert codec.encode("some words") == expected
    assert codec.end_ids == (end,)
    mine = open_model(str(run)).codec()
    if kind in ("llama", "lmkit", "bart"):
        assert (codec.encode("some words"), codec.end_ids) == (mine.encode("some words"), mine.end_ids)
    if kind == "bart":
        assert codec.start_ids == mine.start_ids == (start,)
        assert theirs["decoder_start_token_id"] == start
        assert theirs["forced_eos_token_id"] == end
        assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == end
    if kind == "bert":
        assert theirs["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
        assert (theirs["cls_token_id"], theirs["sep_token_id"]) == (start, end)
    again = texts_of(open_model(str(tmp_path / "out")), tmp_path)  # an export of the export says the same
    assert again.keys["eos_token_id"] == end
    assert again.folder == str(tmp_path / "out")


def test_bytes_and_images(tmp_path: Path) -> None:
    """Ids are said without a tokenizer; a classifier of images has its names."""
    run = make_run(tmp_path / "run", tiny_config(gated=True, vocab_size=264), ByteTokenizer())
    theirs = export(run, tmp_path / "out")
    assert [theirs[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [256] * 3
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    images = make_run(tmp_path / "images", ViTConfig(num_classes=2), ByteTokenizer(), ("cat", "dog"))
    assert texts_of(open_model(str(images)), tmp_path).keys["label2id"] == {"cat": 0, "dog": 1}


def test_nothing_ends_a_text_where_nobody_says_what(tmp_path: Path) -> None:
    config = tiny_config(gated=True)
    save_folder(tmp_path / "out", config, random_params(config)[1])
    theirs = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [theirs[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None] * 3


TEMPLATE = "{% for m in messages %}<x>{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(("sections", "expected"), [
    ({"tokenizer": {"chat_template": TEMPLATE}}, "<x>user: some words<end><x>assistant: more<end>"),
    ({"objective": {"kind": "chat"}},
     "<end><|user|>\nsome words<end><|assistant|>\nmore<end><|assistant|>\n"),
    ({"objective": {"kind": "chat"}, "data": {"message_format": '"{role}\' {content} {{'}},
     '<end>"user\' some words {{<end>"assistant\' more {{<end>"assistant\' '),
    ({}, None),
])  # fmt: skip
def test_the_chat_template_comes_along(sections: dict, expected: str | None, tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", MODELS["llama"], tokenizer, **sections)
    export(run, tmp_path / "out")
    template = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()).get("chat_template")
    if expected is None:
        assert template is None
        return
    from lmkit.data.tokens.chat import ChatTemplate

    assert ChatTemplate(template, "<end>", "<end>").render(MESSAGES, "here", prompt=True) == expected


@pytest.mark.parametrize("kind", ["llama", "bart", "bert"])
def test_transformers_reads_the_same(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'lmkit[parity]'")
    chat = {"tokenizer": {"chat_template": TEMPLATE}}
    run = make_run(tmp_path / "run", MODELS[kind], tokenizer, ("no", "maybe", "yes"), **chat)
    out = tmp_path / "out"
    export(run, out)
    config, theirs = transformers.AutoConfig.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    assert config.eos_token_id == config.pad_token_id == theirs.eos_token_id == theirs.pad_token_id == tokenizer.end_id
    assert config.bos_token_id == theirs.bos_token_id
    assert theirs("some words")["input_ids"] == open_model(str(out)).codec().encode("some words")
    text = theirs.apply_chat_template(MESSAGES, tokenize=False)
    assert text == "<x>user: some words<end><x>assistant: more<end>"
    ids = theirs.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert ids == tokenizer.encode_batch([text])[0].tolist()
    if kind == "bert":
        assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
        pair = theirs("some", "words")
        second = len(tokenizer.encode_batch(["words"])[0]) + 1
        assert pair["token_type_ids"] == [0] * (len(pair["input_ids"]) - second) + [1] * second
    else:
        assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == tokenizer.end_id
    if kind == "bart":
        assert config.decoder_start_token_id == tokenizer.start_id


def test_a_run_that_does_not_say_what_ends_a_text(tokenizer: Any, tmp_path: Path) -> None:
    """As runs with tokenizer=init were: what they began with says it, or the tokenizer goes without."""
    base = make_run(tmp_path / "base", MODELS["llama"], tokenizer)
    said = {"tokenizer": {"kind": "init", "end_token": "<|endoftext|>", "start_token": ""}, "init_from": str(base)}
    run = open_model(str(make_run(tmp_path / "run", MODELS["llama"], tokenizer, **said)))
    assert texts_of(run, tmp_path).keys["eos_token_id"] == tokenizer.end_id
    base.rename(tmp_path / "gone")
    texts = texts_of(run, tmp_path)
    assert texts.folder == str(tmp_path / "run" / "tokenizer.json")
    assert "nothing says what ends a text" in texts.note
    assert texts.keys == {}
