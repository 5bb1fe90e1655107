"""Images of /v1/classify: base64 to pixels as in training, pixels to classes. R rows, H, W pixels, C channels."""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmkit.compiler.programs import jit
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.saved import RUN_FILE
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import ViTConfig
from lmkit.data.sources.images import read_image
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import put_rows, reshard, sharding_of
from lmkit.serve.batcher import Batcher
from lmkit.serve.errors import bad
from lmkit.weights import Form, SavedModel

_ROWS = 4  # of a batch, on each shard of it


class Scale(NamedTuple):
    """(pixel / 255 - mean) / std, one for all channels or one for each."""

    mean: Any
    std: Any


def scale_of(model: SavedModel) -> Scale:
    """As the model was trained: of a run's data, or of a folder's preprocessor_config.json."""
    run = model.source.form is Form.run
    file = model.source.home / (RUN_FILE if run else "preprocessor_config.json")
    found = read_document(file) if file.is_file() else {}
    found, plain = (found.get("data") or {}) if run else found, DataConfig()
    return Scale(found.get("image_mean", plain.image_mean), found.get("image_std", plain.image_std))


class ImageRows:
    """Images through a classifier; each has the same bits alone and among others."""

    def __init__(
        self, merge: Callable[[Any], Any], config: ViTConfig, params: Any, mesh: Mesh, scale: Scale, *, queue: int
    ):
        self._params, self._mesh, self._config, self._scale = params, mesh, config, scale
        self._rows = _ROWS * batch_shards(mesh.shape)

        def probabilities(params: Any, images_RHWC: jax.Array) -> jax.Array:
            return reshard(jax.nn.softmax(merge(params)(images_RHWC), axis=-1), (None, None))

        self._program = jit(probabilities, platform_of(mesh))
        self._batcher = Batcher(self._run, self._rows, queue)

    def pixels(self, value: Any) -> np.ndarray:
        """float32 [H, W, C] of a data: URL, brought to the model's size. Raises Refused for what is no image."""
        head, comma, content = value.partition(",") if isinstance(value, str) else ("", "", "")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise bad("input", "input: this model takes images: data:image/png;base64,... or a list of these")
        size, channels = self._config.image_size, self._config.num_channels
        try:
            raw = base64.b64decode(content, validate=True)
            image_HWC = read_image("image", size, channels, resize=True, content=raw)
        except (binascii.Error, ConfigError) as error:
            raise bad("input", f"input: {error}") from error
        scaled = image_HWC.astype(np.float32) / 255.0
        return (scaled - np.float32(self._scale.mean)) / np.float32(self._scale.std)

    async def ask(self, value: Any) -> np.ndarray:
        """float32 [classes] of one image."""
        return await self._batcher.ask("image", await asyncio.to_thread(self.pixels, value))

    def compile(self) -> None:
        """Compiles the program, and runs it once."""
        size, channels = self._config.image_size, self._config.num_channels
        self._run("image", [np.zeros((size, size, channels), np.float32)])

    def swap(self, params: Any) -> None:
        """Goes on with other parameters of the same shapes."""
        self._params = params

    def close(self) -> None:
        self._batcher.close()

    def _run(self, kind: str, images: list[np.ndarray]) -> list[np.ndarray]:
        images_RHWC = np.stack([*images, *[images[-1]] * (self._rows - len(images))])
        with jax.set_mesh(self._mesh):
            placed = put_rows(images_RHWC, sharding_of(("batch", None, None, None), self._mesh))
            return list(np.asarray(self._program(self._params, placed))[: len(images)])
