"""Which table is whose."""

from collections.abc import Iterable
from pathlib import Path

from flax import nnx

from lmkit.config.base import ConfigError, nearest
from lmkit.config.documents import read_document
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.interop.decoders import DECODERS
from lmkit.interop.encdecs import ENCDECS
from lmkit.interop.encoders import ENCODERS
from lmkit.interop.table import Family, Json, Layout, Row
from lmkit.interop.vision import VISIONS
from lmkit.models import build_model
from lmkit.nn.tree import flat

FAMILIES: tuple[Family, ...] = (*DECODERS, *ENCODERS, *ENCDECS, *VISIONS)


def _own_rows(config: ModelConfig) -> Iterable[Row]:
    shapes = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1]
    return [Row(path, path, Layout.ours) for path in flat(nnx.to_pure_dict(shapes))]


# For models that no published family computes: model.yaml and tensors under our own names, which lmkit alone reads.
OWN = Family("lmkit", ModelConfig, lambda config: "", _own_rows)


def family_of(theirs: Json) -> Family:
    """The table for a config.json. Raises ConfigError, naming the nearest, where there is none."""
    kind = str(theirs.get("model_type") or "")
    for family in (*FAMILIES, OWN):
        if family.model_type == kind:
            return family
    known = [family.model_type for family in FAMILIES]
    raise ConfigError(
        f"config.json: no table for model_type={kind!r}.{nearest(kind, known)} There are {', '.join(known)}"
    )


def family_for(config: ModelConfig) -> tuple[Family, Json]:
    """The first table that can say all of a configuration, and its config.json.

    Raises ConfigError with what each table of the schema could not say.
    """
    problems: list[str] = []
    for family in FAMILIES:
        if family.schema is type(config):
            try:
                return family, family.write_config(config)
            except ConfigError as error:
                problems.append(str(error))
    # one that says which keys it lacks is nearer than one that has no class at all; fewer keys are nearer
    nearest_one = min(problems, key=lambda one: (" no way to say " not in one, one.count("model.")), default="none")
    raise ConfigError(f"no published family computes what this model does; the nearest is: {nearest_one}")


def layout_for(config: ModelConfig) -> tuple[Family, Json, str]:
    """As `family_for`, or lmkit's own layout and why it has to be that."""
    try:
        return *family_for(config), ""
    except ConfigError as error:
        return OWN, {"model_type": OWN.model_type}, str(error)


def with_keys(family: Family, theirs: Json, keys: Json) -> Json:
    """config.json with more keys: ids of special tokens, which lie in text_config where there is one, and others.

    Nothing ends a text of a decoder where nothing says what does: their classes have ids of another vocabulary.
    """
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) if family.schema is GPTConfig else {}
    keys = {name: value for name, value in keys.items() if name not in family.must}
    if isinstance(inner := theirs.get("text_config"), dict):
        ids = {name: value for name, value in keys.items() if name.endswith("_token_id")}
        theirs = theirs | {"text_config": inner | ids}
    return none | theirs | keys


def read_json(folder: Path) -> Json:
    """config.json of a folder. Raises ConfigError where there is none, or it is damaged."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no config.json there; give a folder in the Hugging Face layout")
    return read_document(folder / "config.json", dict, "fetch it again")
