"""`export`: the folder that a model is written to."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import Section, key


@dataclass
class ExportConfig(Section):
    """The folder that `export` writes."""

    section: ClassVar[str] = "export"
    changes_results: ClassVar[bool] = False

    folder: str = key("", "where it goes; it must not exist yet")
    dtype: str = key("float32", "of the weights: float32, bfloat16 or float16")
