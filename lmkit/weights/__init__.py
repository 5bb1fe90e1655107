"""Where a model comes from: a run, a checkpoint, a Hugging Face folder, a hub id or a GGUF file."""

from lmkit.weights.load import LoadedParams, load_start, model_shapes
from lmkit.weights.model import SavedModel, open_model
from lmkit.weights.source import Form, ModelSource, find_model
from lmkit.weights.tokenizer import Codec, codec_of, start_tokenizer, tokenizer_file

__all__ = [
    "Codec", "Form", "LoadedParams", "ModelSource", "SavedModel", "codec_of", "find_model", "load_start",
    "model_shapes", "open_model", "start_tokenizer", "tokenizer_file",
]  # fmt: skip
