"""`lmkit.export`: parameters out, for transformers, for jax alone, or for llama.cpp."""

import tempfile
from pathlib import Path
from typing import Any

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.export import ExportConfig, ExportFormat
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.export.card import model_card
from lmkit.export.programs import MANIFEST, check_programs, save_programs
from lmkit.export.texts import Texts, texts_of
from lmkit.interop.save import DTYPES
from lmkit.nn.tree import flat
from lmkit.weights import Form, SavedModel, open_model
from lmkit.weights.specials import special_ids


def export(experiment: Experiment) -> int:
    """Writes the folder. Raises ConfigError before anything is read where it cannot be written."""
    source, options = experiment.init_from, experiment.export
    if not source or not options.folder:
        missing = "init_from= (a run or checkpoint)" if not source else "export.folder= (where it goes)"
        raise ConfigError(f"say {missing}: python -m lmkit.export init_from=RUN export.folder=OUT")
    folder = Path(options.folder).expanduser()
    if folder.exists():
        raise ConfigError(f"export.folder={folder} exists already: choose another place or remove it")
    if options.format is ExportFormat.huggingface and options.dtype not in DTYPES:
        raise ConfigError(f"export.dtype={options.dtype}: of export.format=huggingface there are {', '.join(DTYPES)}")
    model = open_model(source)
    with tempfile.TemporaryDirectory() as place:
        kind, notes = _write(folder, model, options, Path(place))
    print(f"{folder}: {kind}, {options.dtype}, parameters from {notes[0]}")
    for note in notes[1:]:
        print(note)
    return 0


def _write(folder: Path, model: SavedModel, options: ExportConfig, place: Path) -> tuple[str, list[str]]:
    """What was written, where the parameters are from, and lines for the user."""
    if options.format is ExportFormat.gguf:
        interop.check_gguf(model.config, options.dtype)
    elif options.format is ExportFormat.stablehlo:
        check_programs(model.config, options.dtype)
    config: Any = model.config
    texts = texts_of(model, place)
    vocabulary = interop.Vocabulary()
    if options.format is ExportFormat.gguf:
        vocabulary = interop.read_vocabulary(texts.folder, _ids(model, texts), config.vocab_size)
    found = model.params()
    num_params = sum(int(leaf.size) for leaf in flat(found.params).values())
    notes = [str(found.path), *found.notes, *([texts.note] if texts.note else [])]

    def card(kind: str) -> dict[str, str]:
        return {"README.md": model_card(model, num_params, options, kind)}

    if options.format is ExportFormat.gguf:
        architecture = interop.check_gguf(model.config, options.dtype).name
        with interop.new_folder(folder) as partial:
            notes += interop.save_gguf(
                partial / "model.gguf", config, found.params, dtype=options.dtype, vocabulary=vocabulary,
                name=model.source.path.stem, license=options.license,
            )  # fmt: skip
            _write_texts(partial, card(architecture))
        return f"model.gguf of the architecture {architecture}", notes
    if options.format is ExportFormat.stablehlo:
        with interop.new_folder(folder) as partial:
            files = interop.copy_tokenizer(texts.folder, partial)
            facts = {"tokenizer": files, **_decoding(model, texts)}
            names = save_programs(partial, model.config, found.params, dtype=options.dtype, facts=facts)
            _write_texts(partial, card("stablehlo"))
        return f"{', '.join(names)} for cpu, cuda and tpu ({MANIFEST} describes them)", notes
    family, _, why = interop.layout_for(model.config)
    kind = interop.save_folder(
        folder, model.config, found.params, dtype=options.dtype, tokenizer=texts.folder, keys=texts.keys,
        fallback=True, texts=card(family.model_type),
    )  # fmt: skip
    return kind, [*notes[:1], *_own(why), *notes[1:]]


def _own(why: str) -> list[str]:
    return [f"in lmkit's own layout, which open_model and init_from= read: {why}"] if why else []


def _write_texts(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _ids(model: SavedModel, texts: Texts) -> dict[str, Any]:
    """Ids of special tokens; a folder's generation_config.json goes before its config.json."""
    return texts.keys | (special_ids(model.source.path) if model.source.form is Form.folder else {})


def _decoding(model: SavedModel, texts: Texts) -> dict[str, Any]:
    """What the manifest says of text: how many ids have a token, which begin a text (of a target) and which end it."""
    config, facts = model.config, {key: texts.keys[key] for key in ("id2label",) if key in texts.keys}
    if not isinstance(config, GPTConfig | EncDecConfig):
        return facts
    try:
        codec = model.codec()
    except ConfigError:  # there is none
        return facts | {"vocab_size": config.vocab_size, "begin_ids": [], "end_ids": []}
    begin = list(codec.start_ids) if isinstance(config, EncDecConfig) else codec.encode("")
    return facts | {
        "vocab_size": min(codec.vocab_size, config.vocab_size), "begin_ids": begin, "end_ids": list(codec.end_ids),
    }  # fmt: skip
