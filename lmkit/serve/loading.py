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
from lmkit.config.sections.families import EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.serve import ServeConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.console import Progress
from lmkit.data.tokens.chat import NO_TEMPLATE, ChatTemplate, template_source
from lmkit.decode.engine import Engine
from lmkit.decode.engine.check import check_axes
from lmkit.serve.batcher import TokenRows
from lmkit.serve.conversation import Conversation, Plain, Template
from lmkit.serve.embeddings import embed
from lmkit.serve.grammar import Grammars
from lmkit.serve.labels import probabilities
from lmkit.serve.listening import Listener
from lmkit.serve.pictures import ImageRows, scale_of
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
    codec: Codec | None  # of images
    conversation: Conversation | None
    name: str
    length: int  # of a text, prompt and all


def find(experiment: Experiment, model: SavedModel) -> Found:
    """Raises ConfigError where the tokenizer is missing or damaged, or mesh or positions do not suit the model."""
    settings, config = experiment.serve, model.config
    codec = None if isinstance(config, ViTConfig) else model.codec(experiment.tokenizer)
    conversation = None
    if codec is not None and isinstance(config, GPTConfig):
        check_axes(vars(experiment.mesh))
        conversation = conversation_of(model, codec, experiment.tokenizer)
    most = getattr(config, "max_seq_len", 0)
    if settings.max_len > most and getattr(config, "position", None) is Position.learned:
        raise ConfigError(
            f"serve.max_len={settings.max_len} is more than the model's {most} positions: set serve.max_len={most}"
        )
    return Found(
        model, codec, conversation, settings.name or _name(experiment.init_from, model), settings.max_len or most
    )


def _name(init_from: str, model: SavedModel) -> str:
    """What a model without serve.name is called: org/name of the hub, else the name of its file or folder."""
    if "://" in init_from:
        return init_from.split("://", 1)[1].split("@")[0]
    return model.source.path.stem if model.source.form is Form.gguf else model.source.home.name


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
    model, config = found.model, found.model.config
    served = Served(found.name, [fingerprint_of(model)], 0, found.length, found.codec)
    merge, params = model.for_inference(mesh)
    workers = _workers(found, settings, served, (merge, config, params, mesh))
    if isinstance(config, GPTConfig):
        served.engine = _engine(found, settings, merge, config, params, mesh)
        served.engine.compile(Progress("compiling the engine"))
        served.engine.start()
    for worker in workers:
        worker.compile()
    swaps = [*workers, *([served.engine] if served.engine else [])]

    def swap(params: Any) -> None:
        for one in swaps:
            one.swap(params)

    return Loaded(served, swap)


def _workers(found: Found, settings: ServeConfig, served: Served, parts: tuple[Any, Any, Any, Mesh]) -> list[Any]:
    """What answers beside an engine; each is put into `served`."""
    merge, config, params, mesh = parts
    model, codec, queue = found.model, found.codec, settings.queue
    if codec is None:
        served.labels = tuple(labels_of(model))
        served.classifier = ImageRows(*parts, scale_of(model), queue=queue)
        return [served.classifier]
    if isinstance(config, EncDecConfig):
        served.listener = Listener(*parts, codec, places=model.window, queue=queue)
        return [served.listener]

    def rows(function: Callable[..., Any]) -> TokenRows:
        return TokenRows(function, params, mesh, length=found.length, queue=queue)

    served.vocabulary, served.vocab_size = Vocabulary(codec), min(codec.vocab_size, config.vocab_size)
    served.embedder = rows(partial(embed, merge, config, settings.pooling))
    if isinstance(config, GPTConfig):
        served.grammars = Grammars(codec, served.vocabulary, served.vocab_size)
        served.conversation = found.conversation
        served.scorer = Scorer(merge, params, mesh, vocab_size=served.vocab_size, length=found.length, queue=queue)
        return [served.embedder, served.scorer]
    if config.num_classes > 1 and not config.classify_tokens:
        served.labels = tuple(labels_of(model))
        served.classifier = rows(partial(probabilities, merge, config))
        return [served.embedder, served.classifier]
    return [served.embedder]


def _engine(found: Found, settings: ServeConfig, merge: Any, config: Any, params: Any, mesh: Mesh) -> Engine:
    codec = found.codec
    assert codec is not None
    return Engine(
        merge, params, config, end_ids=codec.end_ids, suppress=codec.rules.suppress,
        suppress_first=codec.rules.suppress_first, vocab_size=codec.vocab_size, mesh=mesh, slots=settings.slots,
        length=found.length, chunk=min(settings.prefill_chunk, found.length),
        prefix_bytes=settings.prefix_mib * MIB, queue=settings.queue,
    )  # fmt: skip


def fingerprint_of(model: SavedModel) -> str:
    """A hash of the files of its parameters, as `system_fingerprint` of answers has it."""
    return f"fp_{fingerprint(weights_at(model.source.path))[:16]}"
