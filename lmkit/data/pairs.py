"""Parts of records in which a text is produced or matched: sources, sounds, targets, captions, conversations."""

from collections.abc import Sequence

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig
from lmkit.config.families import EncDecConfig
from lmkit.data.audio import log_mel, read_audio
from lmkit.data.parts import Batch, Rows, Shapes, encode_texts, filled, pad_rows, text_of
from lmkit.data.record_store import Column
from lmkit.data.records import Record
from lmkit.data.tokenizer import Tokenizer

ASSISTANT = "assistant"


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
    """text end, as `source` and `source_segment_ids` [B, S]."""

    column, key = "source", "text_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer, length = config, tokenizer, config.seq_len
        self.shapes: Shapes = dict.fromkeys(("source", "source_segment_ids"), ((length,), np.int32))

    def collate(self, rows: Rows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        source = [np.append(row[: length - 1], end) for row in rows.columns["source"]]
        return {"source": pad_rows(source, length, end), "source_segment_ids": filled(source, length)}


class Sounds:
    """Log-mel frames, as `source` [B, 2 S, M] and `source_segment_ids` [B, S]: silence is padding of its own."""

    def __init__(self, config: DataConfig, model: EncDecConfig):
        self.config, self.num_mels, length = config, model.num_mels, config.seq_len
        self.columns = {"frames": Column("float16", None)}
        self.shapes: Shapes = {
            "source": ((2 * length, model.num_mels), np.float32),
            "source_segment_ids": ((length,), np.int32),
        }

    def texts(self, record: Record) -> list[str]:
        return []

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        key = self.config.audio_key
        samples = [read_audio(record.path(key, "audio_key")) for record in records]
        return [{"frames": log_mel(one, self.num_mels).astype(np.float16).reshape(-1)} for one in samples]

    def collate(self, rows: Rows) -> Batch:
        (frames, mels), length = self.shapes["source"][0], self.config.seq_len
        sounds = [row.reshape(-1, mels)[:frames] for row in rows.columns["frames"]]
        source = np.zeros((len(sounds), frames, mels), np.float32)
        for line, sound in zip(source, sounds, strict=True):
            line[: len(sound)] = sound
        return {"source": source, "source_segment_ids": filled([sound[::2] for sound in sounds], length)}


class Targets(_OneText):
    """start text as `inputs`, text end as `targets`, `segment_ids` and `weights`, each [B, T]."""

    column, key = "target", "target_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer, length = config, tokenizer, config.target_size
        self.shapes: Shapes = dict.fromkeys(("inputs", "targets", "segment_ids"), ((length,), np.int32))
        self.shapes["weights"] = ((length,), np.float32)

    def collate(self, rows: Rows) -> Batch:
        length, end = self.config.target_size, self.tokenizer.end_id
        inputs = [np.insert(row, 0, self.tokenizer.start_id) for row in rows.columns["target"]]
        inside = filled(inputs, length)
        targets = pad_rows([np.append(row, end) for row in rows.columns["target"]], length, end)
        weights = inside.astype(np.float32)
        return {"inputs": pad_rows(inputs, length, end), "targets": targets, "segment_ids": inside, "weights": weights}


class Captions(_OneText):
    """text end as `inputs` [B, T], with `last` [B], the place of its end."""

    column, key = "caption", "text_key"

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.shapes: Shapes = {"inputs": ((config.seq_len,), np.int32), "last": ((), np.int32)}

    def collate(self, rows: Rows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        inputs = [np.append(row[: length - 1], end) for row in rows.columns["caption"]]
        return {"inputs": pad_rows(inputs, length, end), "last": np.array([len(row) - 1 for row in inputs], np.int32)}


class Conversations:
    """A conversation as `inputs`, `targets`, `segment_ids` and `weights` [B, T]: 1 on the answers and their ends alone.

    Each message is written as data.message_format says and followed by the end token.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer, length = config, tokenizer, config.seq_len
        self.before, self.after = config.message_format.split("{content}", 1)
        self.columns = {"tokens": Column("int32", None), "answers": Column("uint8", None)}
        self.shapes: Shapes = dict.fromkeys(("inputs", "targets", "segment_ids"), ((length,), np.int32))
        self.shapes["weights"] = ((length,), np.float32)

    def _messages(self, record: Record) -> list[tuple[str, str]]:
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
        return pairs

    def texts(self, record: Record) -> list[str]:
        return [self.before.replace("{role}", role) + content + self.after for role, content in self._messages(record)]

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        rows: list[Batch] = []
        for record in records:
            messages = self._messages(record)
            texts = [x for role, said in messages for x in (self.before.replace("{role}", role), said + self.after)]
            ids = self.tokenizer.encode_batch(texts)
            tokens, answers = [np.array([self.tokenizer.end_id])], [np.zeros(1)]
            for number, (role, _) in enumerate(messages):
                head, body = ids[2 * number], np.append(ids[2 * number + 1], self.tokenizer.end_id)
                tokens += [head, body]
                answers += [np.zeros(len(head)), np.full(len(body), role == ASSISTANT)]
            rows.append({"tokens": np.concatenate(tokens), "answers": np.concatenate(answers).astype(np.uint8)})
        return rows

    def collate(self, rows: Rows) -> Batch:
        length, end = self.config.seq_len, self.tokenizer.end_id
        tokens = pad_rows(rows.columns["tokens"], length + 1, end)
        answers = pad_rows(rows.columns["answers"], length + 1, 0, np.float32)  # type: ignore[arg-type]
        inside = filled([row[:-1] for row in rows.columns["tokens"]], length)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": inside, "weights": answers[:, 1:]}
