"""`lmkit.export`: parameters out, in the Hugging Face layout."""

import tempfile
from pathlib import Path

from lmkit import interop
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.export.texts import texts_of
from lmkit.interop.save import DTYPES
from lmkit.weights import open_model


def export(experiment: Experiment) -> int:
    """Writes the folder. Raises ConfigError before anything is read where it cannot be written."""
    source, options = experiment.init_from, experiment.export
    if not source or not options.folder:
        missing = "init_from= (a run or checkpoint)" if not source else "export.folder= (where it goes)"
        raise ConfigError(f"say {missing}: python -m lmkit.export init_from=RUN export.folder=OUT")
    folder = Path(options.folder).expanduser()
    if folder.exists():
        raise ConfigError(f"export.folder={folder} exists already: choose another place or remove it")
    if options.dtype not in DTYPES:
        raise ConfigError(f"export.dtype={options.dtype}: there are {', '.join(DTYPES)}")
    model = open_model(source)
    found = model.params()
    with tempfile.TemporaryDirectory() as place:
        texts = texts_of(model, Path(place))
        kind = interop.save_folder(
            folder, model.config, found.params, dtype=options.dtype, tokenizer=texts.folder, keys=texts.keys,
            fallback=True,
        )  # fmt: skip
    print(f"{folder}: {kind}, {options.dtype}, parameters from {found.path}")
    if why := interop.layout_for(model.config)[2]:
        print(f"in lmkit's own layout, which open_model and init_from= read: {why}")
    for note in (*found.notes, *([texts.note] if texts.note else [])):
        print(note)
    return 0
