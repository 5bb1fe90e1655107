"""`run`: where a run lives, and what makes it repeatable."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Products(Enum):
    """The library that multiplies on a CPU. `auto`: oneDNN in bfloat16 runs of a minute or more, where jax calls it."""

    auto = 0
    xla = 1
    onednn = 2


class CollectiveMatmul(Enum):
    """Whether a TPU's compiler may cut gathers of weights into steps beside their products, in the train step.

    `auto`: it is compiled with and without, and the faster by the compiler's own cycles is kept. `compiler`: as the
    compiler decides. `never`: whole gathers.
    """

    auto = 0
    compiler = 1
    never = 2


@dataclass
class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    section: ClassVar[str] = "run"
    changes_results: ClassVar[bool] = False

    name: str = key("", "name of the run; experiments set it")
    dir: str = key("", "the run's directory; an existing one is resumed; '' = runs/<name>/<date-time>")
    seed: int = key(
        0, "root of all randomness: initialisation, sample order, dropout", at_least=0, at_most=2**32 - 1,
        changes_results=True,
    )  # fmt: skip
    cpu_devices: int = key(
        0, "pretend that the CPU is so many devices (per process), to try a mesh; 0 = off", at_least=0
    )
    cpu_products: Products = key(
        Products.auto, "library of the train step's products on a CPU; oneDNN's are not cached"
    )
    collective_matmul: CollectiveMatmul = key(
        CollectiveMatmul.auto, "of a TPU's train step: auto compiles it with and without and keeps the faster by the "
        "compiler's cycles, remembered in run.compile_cache; compiler = as the compiler decides; never"
    )  # fmt: skip
    umask: str = key(
        "077", "octal umask of the run's files: 077 = for their owner alone, 022 = others may read them, 002 = a group "
        "shares them. The cache keeps the umask of the process"
    )  # fmt: skip
    compile_cache: str = key("auto", "folder of compiled programs; auto = the user's cache folder, '' = off")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch("0?[0-7]{1,3}", self.umask):
            raise ConfigError(f"run.umask={self.umask}: it is three octal digits, such as 077, 022 or 002")
