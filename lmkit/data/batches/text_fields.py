"""Parts of records in which a text is produced or matched: sources, sounds, targets, captions, conversations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import EncDecConfig
from lmkit.data.batches.fields import (
    IGNORED,
    Batch,
    RecordRows,
    Shapes,
    encode_texts,
    filled,
    number_of,
    pad_rows,
    text_of,
)
from lmkit.data.sources.audio import HOP, QUIET, log_mel, read_audio
from lmkit.data.sources.records import Record
from lmkit.data.store.records import Column
from lmkit.data.tokens.chat import ASSISTANT, ChatTemplate, Piece
from lmkit.data.tokens.tokenizer import Tokenizer


class _OneText:
    """A part that is one text: the column it fills and the field it comes from."""

    config: DataConfig
    tokenizer: Tokenizer
    column: str
    key: str  # of DataConfig

    @property
    def columns(self) -> dict[str, Column]:
        return {self.column: Column("int32", None)}

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, getattr(self.config, self.key), self.key)]

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        return encode_texts(self.tokenizer, [self.column], [self.texts(record) for record in records])


class SourceTexts(_OneText):
    """[start] text end, as `source` and `source_segment_ids` [B, S]; the start where the tokenizer has source_start."""

    column, key = "source", "text_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer, length = config, tokenizer, config.seq_len
        self.shapes: Shapes = dict.fromkeys(("source", "source_segment_ids"), ((length,), np.int32))
        self.limits = {("source",): length - 1}

    def collate(self, rows: RecordRows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        source = [_around(self.tokenizer.source_start_ids, row, end, length) for row in rows.columns["source"]]
        return {"source": pad_rows(source, length, end), "source_segment_ids": filled(source, length)}


class Sounds:
    """Log-mel frames, as `source` [B, 2 S, M] and `source_segment_ids` [B, S], all 1.

    A clip is cut, or padded with silence that is heard, as Whisper hears it (Radford et al. 2022, section 2.2). Of the
    silence only the first frames are stored: all others are as the last of them.
    """

    def __init__(self, config: DataConfig, model: EncDecConfig):
        self.config, self.num_mels, length = config, model.num_mels, config.seq_len
        self.columns = {"frames": Column("float16", None), "samples": Column("int32", ())}
        self.limits = {("samples",): 2 * length * HOP}  # frames are cut already
        self.shapes: Shapes = {
            "source": ((2 * length, model.num_mels), np.float32),
            "source_segment_ids": ((length,), np.int32),
        }

    def texts(self, record: Record) -> list[str]:
        return []

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        key, roots = self.config.audio_key, self.config.allow_roots
        files = (record.media(key, "audio_key", roots) for record in records)
        rows: list[Batch] = []
        for one in (read_audio(path, content=content) for path, content in files):
            frames = log_mel(one, self.num_mels, num_frames=2 * self.config.seq_len)[: -(-len(one) // HOP) + QUIET]
            rows.append({"frames": frames.astype(np.float16).reshape(-1), "samples": np.int32(len(one))})  # type: ignore
        return rows

    def collate(self, rows: RecordRows) -> Batch:
        (frames, mels), length = self.shapes["source"][0], self.config.seq_len
        sounds = [row.reshape(-1, mels) for row in rows.columns["frames"]]
        source = np.stack([sound[np.minimum(np.arange(frames), len(sound) - 1)] for sound in sounds])
        heard = np.ones((len(sounds), length), np.int32)
        return {"source": source.astype(np.float32), "source_segment_ids": heard}


def _around(start: list[int], row: np.ndarray, end: int, length: int) -> np.ndarray:
    """start row end, the row cut so that it is of `length` at most."""
    return np.concatenate([start, row[: max(length - 1 - len(start), 0)], [end]]).astype(np.int64)


class Targets(_OneText):
    """start text as `inputs`, the same a token on, and end, as `targets`, `segment_ids`, `weights`, each [B, T].

    A start may be several tokens, of which those after the first are predicted, too.
    """

    column, key = "target", "target_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer, length = config, tokenizer, config.target_size
        self.limits = {("target",): length - 1}
        self.shapes: Shapes = dict.fromkeys(("inputs", "targets", "segment_ids"), ((length,), np.int32))
        self.shapes["weights"] = ((length,), np.float32)

    def collate(self, rows: RecordRows) -> Batch:
        length, end = self.config.target_size, self.tokenizer.end_id
        inputs = [np.concatenate([self.tokenizer.target_start_ids, row]) for row in rows.columns["target"]]
        inside = filled(inputs, length)
        targets = pad_rows([np.append(row[1:], end) for row in inputs], length, end)
        weights = inside.astype(np.float32)
        return {"inputs": pad_rows(inputs, length, end), "targets": targets, "segment_ids": inside, "weights": weights}


class Captions(_OneText):
    """[start] text end as `inputs` [B, T], with `last` [B], the place of its end."""

    column, key = "caption", "text_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.limits = {("caption",): config.seq_len - 1}
        self.shapes: Shapes = {"inputs": ((config.seq_len,), np.int32), "last": ((), np.int32)}

    def collate(self, rows: RecordRows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        inputs = [_around(self.tokenizer.source_start_ids, row, end, length) for row in rows.columns["caption"]]
        return {"inputs": pad_rows(inputs, length, end), "last": np.array([len(row) - 1 for row in inputs], np.int32)}


class Conversations:
    """A conversation as `inputs`, `targets`, `segment_ids` and `weights` [B, T]: 1 on the answers and their ends alone.

    Each message is written as data.message_format says, after the end token and followed by it; or all of them as the
    template says, with nothing added.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, template: ChatTemplate | None = None):
        self.config, self.tokenizer, self.template, length = config, tokenizer, template, config.seq_len
        self.before, self.after = config.message_format.split("{content}", 1)
        # first_answer: the place of the first token that weighs something
        self.columns = {
            "tokens": Column("int32", None), "answers": Column("uint8", None), "first_answer": Column("int32", ()),
        }  # fmt: skip
        self.limits = {("tokens",): length + 1}
        self.shapes: Shapes = dict.fromkeys(("inputs", "targets", "segment_ids"), ((length,), np.int32))
        self.shapes["weights"] = ((length,), np.float32)

    def _messages(self, record: Record) -> list[dict[str, Any]]:
        messages = record.field(self.config.messages_key, "messages_key")
        try:
            pairs = [(message["role"], message["content"]) for message in messages]
        except (TypeError, KeyError):
            pairs = []
        if not any(role == ASSISTANT for role, _ in pairs) or not all(isinstance(x, str) for one in pairs for x in one):
            raise ConfigError(
                f"data: {record.place}: {self.config.messages_key!r} must be a list of {{role, content}} with at least "
                f"one message whose role is {ASSISTANT!r}"
            )
        return list(messages)

    def _pieces(self, record: Record) -> list[Piece]:
        messages = self._messages(record)
        if self.template:
            return self.template.pieces(messages, record.place)
        return [
            piece
            for one in messages
            for piece in (
                Piece(self.before.replace("{role}", one["role"]), False),
                Piece(one["content"] + self.after, one["role"] == ASSISTANT),
            )
        ]

    def texts(self, record: Record) -> list[str]:
        pieces = [piece.text for piece in self._pieces(record)]
        if self.template:
            return ["".join(pieces)]
        return [head + body for head, body in zip(pieces[::2], pieces[1::2], strict=True)]

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        """Texts are encoded whole, as a reader would: a token is of an answer where its last character is."""
        rows: list[Batch] = []
        end = [self.tokenizer.end_id]
        for record in records:
            pieces = self._pieces(record)
            together = [pieces] if self.template else [pieces[n : n + 2] for n in range(0, len(pieces), 2)]
            tokens: list[Any] = [] if self.template else [end]
            answers: list[Any] = [] if self.template else [[False]]
            encoded = self.tokenizer.encode_chars(["".join(piece.text for piece in some) for some in together])
            for some, (ids, lasts) in zip(together, encoded, strict=True):
                inside = np.repeat([piece.answer for piece in some], [len(piece.text) for piece in some])
                tokens.append(ids)
                answers.append(inside[lasts])
                if not self.template:
                    tokens.append(end)
                    answers.append([some[-1].answer])
            row = {"tokens": np.concatenate(tokens), "answers": np.concatenate(answers).astype(np.uint8)}
            if not row["answers"][1:].any():
                raise ConfigError(f"data: {record.place}: its answers have no tokens")
            rows.append(row | {"first_answer": np.int32(1 + np.argmax(row["answers"][1:]))})  # type: ignore[dict-item]
        return rows

    def collate(self, rows: RecordRows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        tokens = pad_rows(rows.columns["tokens"], length + 1, end)
        answers = pad_rows(rows.columns["answers"], length + 1, 0, np.float32)  # type: ignore[arg-type]
        inside = filled([row[:-1] for row in rows.columns["tokens"]], length)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": inside, "weights": answers[:, 1:]}


class Words:
    """Words with a class each: `labels` and `weights` [B, T], on the first token of each word."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, labels: list[str]):
        self.config, self.tokenizer, self.names, length = config, tokenizer, labels, config.seq_len
        self.columns = {"tokens": Column("int32", None), "tags": Column("int32", None)}
        self.limits = {("tokens",): length}
        self.shapes: Shapes = dict.fromkeys(("inputs", "segment_ids", "labels"), ((length,), np.int32))
        self.shapes["weights"] = ((length,), np.float32)

    def texts(self, record: Record) -> list[str]:
        return [" ".join(words_of(record, self.config)[0])]

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        rows = []
        found = [words_of(record, self.config) for record in records]
        encoded = self.tokenizer.encode_chars([" ".join(words) for words, _ in found])
        for record, (words, tags), (ids, lasts) in zip(records, found, encoded, strict=True):
            numbers = np.array([number_of(tag, self.names, record) for tag in tags], np.int64)
            ends = np.cumsum([len(word) + 1 for word in words]) - 1  # the space before a word is of the word
            of, first = np.unique(np.searchsorted(ends, lasts, side="right"), return_index=True)
            marked = np.full(len(ids), IGNORED)
            marked[first] = numbers[of]
            rows.append({"tokens": np.array([start, *ids, end]), "tags": np.array([IGNORED, *marked, IGNORED])})
        return rows

    def collate(self, rows: RecordRows) -> Batch:
        length = self.config.seq_len
        tags = pad_rows(rows.columns["tags"], length, IGNORED)
        return {
            "inputs": pad_rows(rows.columns["tokens"], length, self.tokenizer.end_id),
            "segment_ids": filled(rows.columns["tokens"], length),
            "labels": np.maximum(tags, 0),
            "weights": (tags != IGNORED).astype(np.float32),
        }


def words_of(record: Record, config: DataConfig) -> tuple[list[str], list[str]]:
    """The words of a record and the class of each."""
    words, tags = record.field(config.text_key, "text_key"), record.field(config.label_key, "label_key")
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        raise ConfigError(
            f"data: {record.place}: {config.text_key!r} and {config.label_key!r} must be two lists of one length: "
            f"the words and the class of each"
        )
    plain = all(isinstance(one, str | int | float) for one in (*words, *tags))
    if not words or not plain or not all(str(tag).strip() for tag in tags):
        raise ConfigError(
            f"data: {record.place}: {config.text_key!r} and {config.label_key!r} hold no words, or something that is "
            f"neither a word nor a class"
        )
    return [str(word) for word in words], [str(tag) for tag in tags]
