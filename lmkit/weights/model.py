"""One way in for every verb that takes a model: `open_model`, from what `init_from` names.

The configuration and the tokenizer are read at once, so that mistakes are found before a device is touched; parameters
when they are asked for, each device's shard straight into its memory.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from lmkit import interop
from lmkit.config.documents import read_document
from lmkit.config.saved import RUN_FILE, read_model
from lmkit.config.sections.model import LinearDType, ModelConfig, TransformerConfig
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.models import build_model
from lmkit.weights.load import LoadedParams, load_start, model_shapes
from lmkit.weights.source import Form, ModelSource, find_model
from lmkit.weights.tokenizer import Codec, read_codec


@dataclass(frozen=True)
class SavedModel:
    """A model on disk, its parameters not read yet."""

    source: ModelSource
    config: ModelConfig

    def codec(self, tokenizer: TokenizerConfig | None = None) -> Codec:
        """Text to ids and back: the tokenizer beside the model, or the one that `tokenizer.path` names.

        Raises ConfigError where there is none, or nothing says what an encoder-decoder begins with.
        """
        return read_codec(self.source, self.config, tokenizer or TokenizerConfig())

    @property
    def window(self) -> int:
        """How many places a source has: of a model that listens, always so many. A run has those of data.seq_len."""
        if self.source.form is not Form.run:
            return self.config.source_len  # type: ignore[attr-defined]
        file = self.source.home / RUN_FILE
        data = read_document(file).get("data", {}) if file.is_file() else {}
        return data.get("seq_len", self.config.source_len)  # type: ignore[attr-defined]

    def params(self, mesh: Mesh | None = None) -> LoadedParams:
        """All parameters, float32: those that are evaluated (the average, where there is one), adapters folded in.

        They are sharded over the mesh where one is given, else on the first device.
        """
        return self._load(model_shapes(self.config, mesh))

    def _load(self, shapes: Any) -> LoadedParams:
        found = load_start(str(self.source.path), self.config, shapes, averaged=True)
        assert not found.fresh, found.fresh
        return found

    def for_inference(self, mesh: Mesh) -> tuple[Callable[..., nnx.Module], Any]:
        """(parameters -> the model, the parameters), with matrices in the compute dtype and products in it, too."""
        config: Any = self.config
        if isinstance(config, TransformerConfig):
            config = dataclasses.replace(config, linear_dtype=LinearDType.same)
        graph = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
        found = self._load(model_shapes(config, mesh, resting=True))
        for note in found.notes:  # what is generated goes to standard output
            print(note, file=sys.stderr)
        return lambda params: nnx.merge(graph, nnx.State(params)), found.params


def open_model(init_from: str) -> SavedModel:
    """The model of a run, a checkpoint, a Hugging Face folder, a hub id or a .gguf file.

    Raises ConfigError where nothing is there that holds a model, or its configuration cannot be read.
    """
    source = find_model(init_from)
    config = read_model(source.home) if source.form is Form.run else interop.read_config(source.path)
    return SavedModel(source, config)
