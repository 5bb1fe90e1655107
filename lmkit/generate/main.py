"""`lmkit.generate`, top to bottom: what was asked for, the model, the text as it comes."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.model import Position
from lmkit.data.batches.fields import filled, pad_rows
from lmkit.data.sources.files import File, read_bytes
from lmkit.data.sources.formats import Bad, decoded, has_rows, read_rows, text_under
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling, TextStream
from lmkit.decode.loop import position_limit
from lmkit.generate.job import Job, Text
from lmkit.generate.show import Screen
from lmkit.generate.transcribe import read_sounds, transcribe
from lmkit.parallel.devices import setup_jax
from lmkit.parallel.mesh import build_mesh
from lmkit.speech.sound import (
    before_sound,
    check_listens,
    detect,
    join,
    opening,
    read_windows,
    stamps_of,
    windows_of,
)
from lmkit.weights import SavedModel, open_model

_MULTIPLE = 16  # sources are padded to one, so that few lengths are compiled


def generate(experiment: Experiment) -> int:
    """Makes the text that `experiment.generate` asks for, shows it, and writes it where asked."""
    settings = experiment.generate
    model = open_model(experiment.init_from)
    texts = settings.audio or read_prompts(settings)
    config = check_writes(model)
    codec = model.codec(experiment.tokenizer)
    listens = check_listens(config, settings)
    start, stamps, before = opening(codec, settings, listens), stamps_of(codec, settings), before_sound(codec, settings)
    places = model.window if listens else 0
    sounds = read_sounds(config, settings, places) if stamps else []
    windows = read_windows(config, settings, places) if listens and not stamps else []
    sources = [one for some in windows for one in some]
    ids = [] if listens else [codec.encode(text) for text in texts]
    lengths = [places] if listens else [len(one) for one in ids]
    check_lengths(config, lengths, settings, len(before) + len(start))
    setup_jax(experiment.run)
    mesh = build_mesh(experiment.mesh)
    with _writer(settings.out) as write:
        merge, params = model.for_inference(mesh)
        sampling = Sampling(
            settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty
        )
        decoder = Decoder(
            merge, config, sampling, end_ids=codec.end_ids, suppress=codec.rules.suppress,
            suppress_first=codec.rules.suppress_first, vocab_size=codec.vocab_size, stamps=stamps, mesh=mesh,
        )  # fmt: skip
        params = decoder.prepared(params)
        job = Job(decoder, params, codec, config, settings, experiment.run.seed, start, before)
        each = settings.num_samples
        screen = Screen([text for text in texts for _ in range(each)], echo=not isinstance(config, EncDecConfig))
        make = _searched if settings.num_beams > 1 else _drawn
        if sounds:
            results = transcribe(job, sounds, places, screen)
        elif any(len(some) > 1 for some in windows):
            results = _joined(job, make(job, sources, None), [len(some) for some in windows], screen)
        else:
            results = make(job, sources or ids, screen)
        made = 0
        for number, result in enumerate(results):
            made += result.tokens
            row = {"prompt": texts[number // each]} | result._asdict()
            write({name: value for name, value in row.items() if value is not None and name != "ids"})
    screen.close(made)
    return 0


def check_writes(model: SavedModel) -> GPTConfig | EncDecConfig:
    """The configuration of a model that writes text. Raises ConfigError for any other."""
    if not isinstance(model.config, GPTConfig | EncDecConfig):
        raise ConfigError(
            f"init_from={model.source.path}: a {type(model.config).__name__} makes no text; generate needs a model of "
            f"the family gpt or encdec"
        )
    return model.config


def read_prompts(settings: GenerateConfig) -> list[str]:
    """The prompts asked for; one that is empty where none is. Raises ConfigError for a file that has none."""
    if not settings.prompts_file:
        return [settings.prompt]
    path = str(Path(settings.prompts_file).expanduser())
    try:
        prompts = list(_prompts_of(path))
    except ConfigError as error:
        raise ConfigError(f"generate.prompts_file={path}: {str(error).removeprefix('data: ')}") from error
    if not prompts:
        raise ConfigError(f"generate.prompts_file={path}: it is empty")
    return prompts


def _prompts_of(path: str) -> Iterator[str]:
    """The field `prompt` of each row, or each line of a text that is not blank."""
    if not has_rows(path):
        text = decoded(read_bytes(path))
        if isinstance(text, Bad):
            raise ConfigError(text.reason)
        yield from (line.removesuffix("\r") for line in text.split("\n") if line.strip())
        return
    for row in read_rows(File(path, path, 0, ""), {"prompt": ""}):
        found = row if isinstance(row, Bad) else text_under(row.fields, "prompt", "")
        if isinstance(found, Bad):
            raise ConfigError(f"{row.place} {found.reason}")
        yield found


def check_lengths(config: Any, lengths: list[int], settings: GenerateConfig, start: int = 1) -> None:
    """Raises ConfigError where a prompt has nothing in it, or needs more positions than the model has."""
    longest, new = max(lengths), settings.max_new_tokens
    if not min(lengths):
        raise ConfigError("an empty prompt, and this tokenizer begins texts with no token: set generate.prompt=")
    if isinstance(config, EncDecConfig):
        if config.position is Position.learned and longest > config.source_len:
            raise ConfigError(
                f"a source of {longest} places for {config.source_len} positions of the encoder: shorten it"
            )
        longest = start
    limit = position_limit(config)
    if limit and longest + new > limit:
        room = f"set generate.max_new_tokens={limit - longest}, or shorten it" if longest < limit else "shorten it"
        raise ConfigError(
            f"a prompt of {longest} tokens and generate.max_new_tokens={new} need more than the model's {limit} "
            f"positions: {room}"
        )


def _batches(job: Job, sources: Sequence[Any], texts_each: int) -> Iterator[Prompts]:
    """The prompts (ids, or frames of sound), each `texts_each` times, in batches."""
    rows, size = [one for one in sources for _ in range(texts_each)], job.settings.batch_size
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        if not isinstance(job.config, EncDecConfig):
            yield Prompts(some, first_row=first)
            continue
        if job.config.num_mels:
            source = np.stack(some)
            real = np.ones((len(some), source.shape[1] // 2), np.int32)
        else:
            places = -(-max(len(one) for one in some) // _MULTIPLE) * _MULTIPLE
            source, real = pad_rows(some, places, 0), filled(some, places)
        batch = Prompts([job.start] * len(some), source, real, first)  # type: ignore[list-item]
        batch = detect(job.decoder, job.params, job.start, job.codec, batch)
        yield batch._replace(tokens=[[*job.before, *row] for row in batch.tokens])


def _joined(job: Job, results: Iterator[Text], counts: list[int], screen: Screen) -> Iterator[Text]:
    """A text for each file, of its windows."""
    rows = list(results)
    for number, some in enumerate(windows_of(counts, job.settings.num_samples)):
        parts = [rows[row] for row in some]
        ids = join([part.ids for part in parts])
        stream = TextStream(job.codec.decode, (), job.settings.stop)
        text = "".join(stream.push(token) for token in ids) + stream.finish()
        screen.show(number, text, done=True)
        ended = "stop" if stream.stopped else "length" if any(part.ended == "length" for part in parts) else "end"
        yield Text(text, sum(part.tokens for part in parts), ended, ids=tuple(ids))


def _drawn(job: Job, sources: Sequence[Any], screen: Screen | None) -> Iterator[Text]:
    """A token a step for all rows of a batch, shown as they come."""
    settings, ends = job.settings, job.decoder.end_ids
    for batch in _batches(job, sources, settings.num_samples):
        context = [() if batch.source is not None else tokens for tokens in batch.tokens]
        streams = [TextStream(job.codec.decode, tokens, settings.stop) for tokens in context]
        texts, made, ended = [""] * len(streams), [0] * len(streams), [""] * len(streams)
        ids: list[list[int]] = [[] for _ in streams]

        def say(row: int, text: str, end: str, first=batch.first_row, texts=texts, ended=ended) -> None:
            texts[row] += text
            ended[row] = end
            if screen is not None:
                screen.show(first + row, text, done=bool(end))

        steps = job.decoder.stream(job.params, batch, max_new_tokens=settings.max_new_tokens, seed=job.seed)
        for tokens in steps:
            for row in (row for row, end in enumerate(ended) if not end):
                made[row] += 1
                if tokens[row] in ends:
                    say(row, streams[row].finish(), "end")
                else:
                    ids[row].append(int(tokens[row]))
                    text = streams[row].push(int(tokens[row]))
                    say(row, text, "stop" if streams[row].stopped else "")
            if all(ended):
                break
        for row in (row for row, end in enumerate(ended) if not end):
            text = streams[row].finish()
            say(row, text, "stop" if streams[row].stopped else "length")
        yield from (
            Text(text, count, end, ids=tuple(own))
            for text, count, end, own in zip(texts, made, ended, ids, strict=True)
        )


def _searched(job: Job, sources: Sequence[Any], screen: Screen | None) -> Iterator[Text]:
    """The best beams of each prompt."""
    settings = job.settings
    beams = BeamSearch(
        job.decoder, settings.num_beams, length_penalty=settings.length_penalty, early_stopping=settings.early_stopping
    )
    number = 0
    for batch in _batches(job, sources, 1):
        found = beams.search(job.params, batch, max_new_tokens=settings.max_new_tokens)
        for tokens, row in zip(batch.tokens, found, strict=True):
            for beam in range(settings.num_samples):
                made, score = row[min(beam, len(row) - 1)]
                stream = TextStream(job.codec.decode, () if batch.source is not None else tokens, settings.stop)
                text = "".join(stream.push(token) for token in made) + stream.finish()
                if screen is not None:
                    screen.show(number, text, done=True)
                number += 1
                ended = "stop" if stream.stopped else "length" if len(made) == settings.max_new_tokens else "end"
                yield Text(text, len(made), ended, score, ids=tuple(made))


@contextlib.contextmanager
def _writer(path: str) -> Iterator[Any]:
    """A function that appends an object to a new .jsonl file; one that does nothing without a path."""
    if not path or jax.process_index():
        yield lambda row: None
        return
    try:
        file = Path(path).expanduser().open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"generate.out={path}: {error.strerror}") from error
    with file:
        yield lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")
