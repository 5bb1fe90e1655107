"""The model card: the README.md of an exported folder, from what the run, or the folder it comes from, says."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmkit import __version__
from lmkit.config.documents import read_document
from lmkit.config.saved import RUN_FILE
from lmkit.config.sections.export import ExportConfig, ExportFormat
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.console import count, size
from lmkit.redact import redact_text, redact_words
from lmkit.weights import Form, SavedModel

Json = dict[str, Any]
_LIBRARY = {ExportFormat.huggingface: "transformers", ExportFormat.stablehlo: "jax", ExportFormat.gguf: "llama.cpp"}
_FIGURES = 40  # of a table
_AUTO = {  # transformers' class of each task
    "text-generation": "AutoModelForCausalLM", "text2text-generation": "AutoModelForSeq2SeqLM",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq", "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}  # fmt: skip


def model_card(model: SavedModel, num_params: int, options: ExportConfig, kind: str) -> str:
    """The text. `kind`: what was written, such as a model_type."""
    home = model.source.home
    run = _read(home / RUN_FILE) if model.source.form is Form.run else {}
    receipt, summary = (_read(home / name) if run else {} for name in ("receipt.json", "summary.json"))
    head, theirs = _head(model, options, kind), model.source.path / "README.md"
    kept = model.source.form is Form.folder and theirs.is_file()
    name = ((receipt.get("run") or {}).get("name") if run else "") or model.source.path.stem or "model"
    parts = [
        f"# {name}", _about(model, num_params, options, kind, run),
        f"The head of this card is that of the model it was made from (`{model.source.path.name}/README.md`)."
        if kept else "",
        _data(run, receipt), _training(receipt, summary), _results(home / "evaluations" if run else None),
        _loading(options, kind, _task(model.config)), _provenance(receipt),
    ]  # fmt: skip
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return redact_text(f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _read(file: Path) -> Json:
    found = read_document(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _head(model: SavedModel, options: ExportConfig, kind: str) -> Json:
    """The fields of the YAML head: of the card it comes from, where there is one, else what is known."""
    head: Json = {}
    theirs = model.source.path / "README.md"
    if model.source.form is Form.folder and theirs.is_file():
        text = theirs.read_text(encoding="utf-8", errors="replace")
        if text.startswith("---\n") and "\n---" in text[4:]:
            try:
                found = yaml.safe_load(text[4:].split("\n---", 1)[0])
            except yaml.YAMLError:
                found = None
            head = found if isinstance(found, dict) else {}
    license = options.license or head.get("license") or "unknown"
    library = _LIBRARY[options.format] if kind != "lmkit" else "lmkit"
    tags = list(dict.fromkeys([*_list(head.get("tags")), "lmkit", *([kind] if kind else [])]))
    task = _task(model.config)
    return head | {"license": license, "library_name": library, "tags": tags} | (
        {} if head.get("pipeline_tag") or not task else {"pipeline_tag": task}
    )  # fmt: skip


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _task(config: Any) -> str:
    """The hub's name of what such a model is for."""
    if isinstance(config, BERTConfig):
        kinds = ("token-classification", "text-classification")
        return kinds[not config.classify_tokens] if config.num_classes else "fill-mask" if config.lm_head else ""
    if isinstance(config, EncDecConfig):
        return "automatic-speech-recognition" if config.num_mels else "text2text-generation"
    names = {GPTConfig: "text-generation", ViTConfig: "image-classification",
             CLIPConfig: "zero-shot-image-classification"}  # fmt: skip
    return names.get(type(config), "")


def _about(model: SavedModel, num_params: int, options: ExportConfig, kind: str, run: Json) -> str:
    config = model.config
    towers = [f"{part.num_layers} layers of width {part.embed_dim}" for part in config.towers().values()]
    what = type(config).__name__.removesuffix("Config")
    start = run.get("init_from")
    began = f" It was trained from `{Path(start).name}`." if isinstance(start, str) and start else ""
    return (
        f"A {what} of {count(num_params)} parameters ({num_params:,}; {', '.join(towers)}), "
        f"written by lmkit {__version__} in the format `{options.format.name}` ({kind}, {options.dtype}).{began}"
    )


def _data(run: Json, receipt: Json) -> str:
    """What it was trained on: a row a part of the data."""
    data = receipt.get("data")
    parts = {name: part for name, part in data.items() if isinstance(part, dict)} if isinstance(data, dict) else {}
    if not parts:
        return ""
    mixture = run.get("data") or {}
    rows = []
    for name, part in parts.items():
        train = _dict(part.get("train"))
        amounts = [f"{train[key]:,} {key}" for key in ("documents", "records", "tokens") if key in train]
        amounts += [size(train["bytes"])] if "bytes" in train else []
        source = (mixture.get("mixture") or {}).get(name) or mixture
        where = [Path(str(one)).name for one in _list(source.get("paths"))] if isinstance(source, Mapping) else []
        said = source.get("source") if isinstance(source, Mapping) else ""
        rows.append(f"| {name} | {_cell(', '.join([str(said or ''), *where[:3]]).strip(', '))} | "
                    f"{', '.join(amounts)} | not recorded |")  # fmt: skip
    return "\n".join(["## Data", "", "| part | source | size | licence |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _training(receipt: Json, summary: Json) -> str:
    """Steps, tokens, figures."""
    if not summary:
        return ""
    seen = [f"{count(summary['tokens'])} tokens"] if summary.get("tokens") else []
    seen += [f"{summary['steps']:,} steps"] if isinstance(summary.get("steps"), int) else []
    figures = [(name, value) for name, value in summary.items() if name.startswith(("eval/", "best/"))]
    rows = [f"| {name} | {_number(value)} |" for name, value in figures if _number(value)][:_FIGURES]
    devices = receipt.get("devices") or {}
    where = f", on {devices['count']} x {devices['kind']}" if {"count", "kind"} <= set(devices) else ""
    table = ["", "| on held-out data | value |", "|---|---|", *rows] if rows else []
    return "\n".join(["## Training", "", f"It saw {' in '.join(seen) or 'an unknown amount of data'}{where}.", *table])


def _results(folder: Path | None) -> str:
    """The latest figures of lmkit.evaluate beside the run."""
    files = sorted(folder.glob("*/results.json")) if folder is not None and folder.is_dir() else []
    if not files:
        return ""
    found = _read(files[-1]).get("results")
    rows = [
        f"| {task} | {name} | {_number(value)} |"
        for task, values in (found.items() if isinstance(found, dict) else ()) if isinstance(values, dict)
        for name, value in values.items() if _number(value) and "stderr" not in name
    ]  # fmt: skip
    return (
        "\n".join(["## Evaluation", "", "| task | metric | value |", "|---|---|---|", *rows[:_FIGURES]]) if rows else ""
    )


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _loading(options: ExportConfig, kind: str, task: str) -> str:
    auto = _AUTO.get(task, "AutoModel")
    ways = {
        ExportFormat.huggingface: f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained(FOLDER)",
        ExportFormat.gguf: "llama-cli -m FOLDER/model.gguf -p 'Once'",
        ExportFormat.stablehlo: "python generate.py FOLDER  # the loader of lmkit's docs/exchange.md: jax and numpy",
    }  # fmt: skip
    way = ways[options.format]
    if kind == "lmkit":
        way = "python -m lmkit.generate init_from=FOLDER"
    return f"## Loading\n\n```\n{way}\n```\n\nlmkit reads it, too: `init_from=`." if (
        options.format is ExportFormat.huggingface) else f"## Loading\n\n```\n{way}\n```"  # fmt: skip


def _provenance(receipt: Json) -> str:
    command = [str(word) for word in _list(receipt.get("command"))]
    if not command:
        return ""
    command = ["python", *command[1:]] if Path(command[0]).name.startswith("python") else command
    line = shlex.join(redact_words(command))
    git, versions = _dict(receipt.get("git")), _dict(receipt.get("versions"))
    said = [f"lmkit {versions.get('lmkit')}, jax {versions.get('jax')}"] if versions else []
    said += [f"commit {git['commit']}" + (" with changes" if git.get("diff") else "")] if git.get("commit") else []
    return f"## How it was made\n\n```\n{line}\n```\n\n{', '.join(said)}"
