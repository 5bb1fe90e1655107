"""`export`: the folder that a model is written to."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class ExportFormat(Enum):
    """What the folder holds, and who reads it."""

    huggingface = 0  # safetensors and config.json: transformers, vLLM, lmkit
    stablehlo = 1  # compiled functions and their weights: jax on a CPU, a GPU or a TPU
    gguf = 2  # one model.gguf: llama.cpp


@dataclass
class ExportConfig(Section):
    """The folder that `export` writes."""

    section: ClassVar[str] = "export"
    changes_results: ClassVar[bool] = False

    folder: str = key("", "where it goes; it must not exist yet")
    format: ExportFormat = key(
        ExportFormat.huggingface,
        "of the folder: huggingface (safetensors), stablehlo (functions for any platform of jax) or gguf (llama.cpp)",
    )
    dtype: str = key(
        "float32",
        "of the weights: float32, bfloat16 or float16; of gguf also q8_0 and q4_0; of stablehlo float32 or bfloat16, "
        "and what it computes in",
    )
    license: str = key(
        "", "licence of the model for its card, such as apache-2.0; '' = what its own card says, or unknown"
    )
