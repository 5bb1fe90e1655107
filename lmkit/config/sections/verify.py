"""`verify`: one device compared with a mesh."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import Section, key


@dataclass
class VerifyConfig(Section):
    """One device against the mesh."""

    section: ClassVar[str] = "verify"
    changes_results: ClassVar[bool] = False

    real_devices: bool = key(False, "use the devices there are; false = pretend that the CPU is as many as are needed")
    topology: str = key(
        "", "a TPU slice, such as v5e:16x16: compile the full step for it and show what it sends, running nothing"
    )
