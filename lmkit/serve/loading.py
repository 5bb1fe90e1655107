"""From a saved model to what answers for it: every program compiled, none later."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.experiment import Experiment
from lmkit.config.saved import RUN_FILE, read_tokenizer
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.serve import ServeConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.console import Progress
from lmkit.data.tokens.chat import NO_TEMPLATE, ChatTemplate, template_source
from lmkit.decode.engine import Engine
from lmkit.serve.batcher import TokenRows
from lmkit.serve.conversation import Conversation, Plain, Template
from lmkit.serve.embeddings import embed
from lmkit.serve.grammar import Grammars
from lmkit.serve.labels import probabilities
from lmkit.serve.listening import Listener
from lmkit.serve.scoring import Scorer
from lmkit.serve.served import Served
from lmkit.serve.vocabulary import Vocabulary
from lmkit.weights import Codec, Form, SavedModel, start_tokenizer
from lmkit.weights.base import fingerprint, weights_at
from lmkit.weights.labels import labels_of

MIB = 1 << 20


class Found(NamedTuple):
    """A model whose files have passed their checks; its parameters are not read yet."""

    model: SavedModel
    codec: Codec
    conversation: Conversation | None
    name: str
    length: int  # of a text, prompt and all


def find(experiment: Experiment, model: SavedModel) -> Found:
    """Raises ConfigError where the tokenizer is missing or damaged, or the model has not so many positions."""
    settings, config = experiment.serve, model.config
    codec = model.codec(experiment.tokenizer)
    conversation = conversation_of(model, codec, experiment.tokenizer) if isinstance(config, GPTConfig) else None
    most = getattr(config, "max_seq_len", 0)
    if settings.max_len > most and getattr(config, "position", None) is Position.learned:
        raise ConfigError(
            f"serve.max_len={settings.max_len} is more than the model's {most} positions: set serve.max_len={most}"
        )
    path = model.source.path
    own = path.stem if model.source.form is Form.gguf else model.source.home.name
    return Found(model, codec, conversation, settings.name or own, settings.max_len or most)


def conversation_of(model: SavedModel, codec: Codec, given: TokenizerConfig) -> Conversation | None:
    """How the model talks: by tokenizer.chat_template, its own template, or a run's data.message_format."""
    if given.chat_template == NO_TEMPLATE:
        return None
    source, home = model.source, model.source.home
    settings, text = TokenizerConfig(end_token=""), ""
    if source.form is Form.run:
        settings = read_tokenizer(home)
    elif source.form is Form.folder and (home / "tokenizer.json").is_file():
        settings = start_tokenizer(TokenizerConfig(kind=TokenizerKind.init), str(home))
    elif source.form is Form.gguf:
        text = interop.GGUFSource(source.path).fields.get("tokenizer.chat_template") or ""
    if text := template_source(given) or text or template_source(settings):
        end, start = settings.end_token, settings.start_token
        if codec.inner is not None and not end:
            ids = [*codec.end_ids[:1], *(codec.encode("")[:1] or codec.end_ids[:1])]
            end, start = ([codec.inner.id_to_token(one) or "" for one in ids] + ["", ""])[:2]
        return Template(ChatTemplate(text, end, start), codec)
    run = read_document(home / RUN_FILE) if source.form is Form.run and (home / RUN_FILE).is_file() else {}
    if (run.get("objective") or {}).get("kind") != "chat":
        return None
    return Plain((run.get("data") or {}).get("message_format") or DataConfig().message_format, codec)


class Loaded(NamedTuple):
    """What answers, and how it goes on with newer parameters."""

    served: Served
    swap: Callable[[Any], None]


def load(found: Found, settings: ServeConfig, mesh: Mesh) -> Loaded:
    """Reads the parameters and compiles every program. Raises ConfigError where the devices or the files do not fit."""
    model, codec, config = found.model, found.codec, found.model.config
    merge, params = model.for_inference(mesh)
    served = Served(found.name, fingerprint_of(model), 0, found.length, codec)
    served.vocab_size = min(codec.vocab_size, getattr(config, "vocab_size", codec.vocab_size))
    workers: list[Any]
    rows = {"length": found.length, "queue": settings.queue}
    if isinstance(config, EncDecConfig):
        served.listener = Listener(
            merge, config, params, mesh, codec, places=model.window, queue=settings.queue
        )  # fmt: skip
        workers = [served.listener]
    else:
        served.vocabulary = Vocabulary(codec)
        served.embedder = TokenRows(partial(embed, merge, config, settings.pooling), params, mesh, **rows)
        workers = [served.embedder]
        if getattr(config, "num_classes", 0) > 1 and not getattr(config, "classify_tokens", False):
            served.labels = tuple(labels_of(model))
            served.classifier = TokenRows(partial(probabilities, merge, config), params, mesh, **rows)
            workers.append(served.classifier)
    if isinstance(config, GPTConfig):
        assert served.vocabulary is not None
        served.grammars = Grammars(codec, served.vocabulary, served.vocab_size)
        served.conversation = found.conversation
        served.scorer = Scorer(merge, params, mesh, vocab_size=served.vocab_size, **rows)
        engine = Engine(
            merge, params, config, end_ids=codec.end_ids, suppress=codec.rules.suppress,
            suppress_first=codec.rules.suppress_first, vocab_size=codec.vocab_size, mesh=mesh, slots=settings.slots,
            length=found.length, chunk=min(settings.prefill_chunk, found.length),
            prefix_bytes=settings.prefix_mib * MIB, queue=settings.queue,
        )  # fmt: skip
        engine.compile(Progress("compiling the engine"))
        engine.start()
        served.engine = engine
        workers += [served.scorer]
    for worker in workers:
        worker.compile()
    swaps = [*workers, *([served.engine] if served.engine else [])]

    def swap(params: Any) -> None:
        for one in swaps:
            one.swap(params)

    return Loaded(served, swap)


def fingerprint_of(model: SavedModel) -> str:
    """A hash of the files of its parameters, as `system_fingerprint` of answers has it."""
    return f"fp_{fingerprint(weights_at(model.source.path))[:16]}"
