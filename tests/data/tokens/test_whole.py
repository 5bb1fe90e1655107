"""Texts are encoded whole, or in pieces whose ids add up: SentencePiece's tokenizers begin each piece anew."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.fields import IGNORED
from lmkit.data.batches.text_fields import Conversations, Words
from lmkit.data.prepare import prepare
from lmkit.data.sources.records import Record
from lmkit.data.store import token_parts
from lmkit.data.store.tokens import TRAIN
from lmkit.data.tokens.bulk import Bulk
from lmkit.data.tokens.chat import ChatTemplate
from lmkit.data.tokens.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer
from lmkit.data.tokens.vocabulary import train_bpe

TALK = [
    {"role": "user", "content": "do go"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "on"},
    {"role": "assistant", "content": "no"},
]


def metaspace(path: Path) -> FastTokenizer:
    """Letters, where a space is \u2581 and a text begins with one."""
    letters = ["<end>", "\u2581", "\n", *(chr(n) for n in range(33, 127))]
    inner = Tokenizer(models.BPE({one: n for n, one in enumerate([*letters, "\u2581o"])}, [("\u2581", "o")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    inner.decoder = decoders.Metaspace()  # type: ignore[assignment]
    inner.add_special_tokens(["<end>"])
    inner.save(str(path))
    found = load_tokenizer(path, TokenizerConfig(kind=TokenizerKind.file, path=str(path), end_token="<end>"))
    assert isinstance(found, FastTokenizer)
    return found


def record(**fields: object) -> Record:
    return Record("a", dict(fields), "a line 1", "", None)


def test_what_adds_up(tmp_path: Path) -> None:
    assert Bulk(ByteTokenizer()).additive
    assert Bulk(train_bpe(["some words, and\n\n  more; 12 words"] * 9, TokenizerConfig(vocab_size=280))).additive
    assert not Bulk(metaspace(tmp_path / "t.json")).additive


@pytest.mark.parametrize("kind", ["metaspace", "bpe"])
def test_a_long_document_is_encoded_as_a_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blank lines, spaces at their ends and a stretch without any line end."""
    monkeypatch.setattr(token_parts, "_PIECE_CHARS", 40)
    text = "one \n\n  two\n\n\nthree four\n five;\n" * 4 + "x" * 90 + "\nlast one\n\n" * 5
    codec = metaspace(tmp_path / "t.json")
    if kind == "bpe":
        codec = train_bpe([text], TokenizerConfig(vocab_size=290, end_token="<end>"))
        assert len(list(token_parts._pieces(text, True))) > 3
        codec.save(tmp_path / "t.json")
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(text)
    config = TokenizerConfig(kind=TokenizerKind.file, path=str(tmp_path / "t.json"), end_token="<end>")
    data = DataConfig(paths=[str(tmp_path / "*.txt")], holdout_every=2, cache_dir=str(tmp_path / "cache"))
    store = prepare(data, config).stores["text"]
    (tokens,) = store.read(TRAIN, [1], [store.document_ends(TRAIN)[0]])
    assert tokens.tolist() == codec.encode_batch([text])[0].tolist()


@pytest.mark.parametrize("source", ["", "{% for m in messages %}[{{ m.role }}] {{ m.content }} ;{% endfor %}"])
def test_a_conversation_is_encoded_as_a_whole(source: str, tmp_path: Path) -> None:
    codec = metaspace(tmp_path / "t.json")
    template = ChatTemplate(source, "<end>") if source else None
    field = Conversations(DataConfig(message_format="[{role}] {content}"), codec, template)
    (row,) = field.encode([record(messages=TALK)])
    tokens, answers = row["tokens"], row["answers"]
    if template:
        texts = [template.render(TALK, "")]
        assert tokens.tolist() == codec.encode_batch(texts)[0].tolist()
    else:
        texts = [f"[{one['role']}] {one['content']}" for one in TALK]
        whole = [[codec.end_id], *(x for text in texts for x in ([*codec.encode_batch([text])[0]], [codec.end_id]))]
        assert tokens.tolist() == [x for one in whole for x in one]
    said = codec.decode(tokens[answers == 1])
    assert said.replace(" ", "") == ("ok;no;" if template else "okno")
    assert answers[tokens == codec.end_id].tolist() == ([] if template else [0, 0, 1, 0, 1])


def test_words_are_encoded_as_one_text(tmp_path: Path) -> None:
    codec, words = metaspace(tmp_path / "t.json"), ["go", "on", "no"]
    field = Words(DataConfig(), codec, ["A", "B", "C"])
    (row,) = field.encode([record(text=words, label=["A", "B", "C"])])
    assert row["tokens"].tolist() == [0, *codec.encode_batch(["go on no"])[0].tolist(), 0]
    first = np.flatnonzero(row["tags"] != IGNORED)
    assert row["tags"][first].tolist() == [0, 1, 2]
    assert [codec.inner.id_to_token(int(row["tokens"][n])) for n in first] == ["\u2581", "\u2581o", "\u2581"]


def test_a_line_end_of_the_command_line() -> None:
    assert GenerateConfig(stop=["\\n", "a\\tb", "\n"]).stop == ["\n", "a\tb", "\n"]
    assert DataConfig(message_format="{role}:\\n{content}\\n").message_format == "{role}:\n{content}\n"
    assert DataConfig().message_format == "<|{role}|>\n{content}"
