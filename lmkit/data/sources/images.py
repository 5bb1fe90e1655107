"""Images: files to pixels, MNIST's IDX arrays, and random changes that a row's key decides.

B rows, H height, W width, C channels.
"""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.keyed import uniform
from lmkit.data.sources.files import read_bytes

_MODES = {1: "L", 3: "RGB"}  # Pillow's names for grey and colour


def read_image(
    path: str | Path, size: int, channels: int, *, resize: bool = False, content: bytes | None = None
) -> np.ndarray:
    """An image file as uint8 [size, size, channels]: colour with 3 channels, grey with 1.

    With `content` these are the file's bytes, and `path` only says where they come from.
    With `resize` any image is brought to that size (bilinear, antialiased, a rectangle is squeezed into the square).
    What is transparent shows white: the colours that a file holds there are not meant to be seen.
    Raises ConfigError for a file that cannot be read, and without `resize` for another size.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError(f"reading {path} needs Pillow: {error}; pip install 'lmkit[vision]'") from error
    if channels not in _MODES:
        raise ConfigError(f"{path}: images have 1 channel (grey) or 3 (colour), not {channels}; set model.num_channels")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as file:
            image = ImageOps.exif_transpose(file)  # a camera stores how it was held
            if image.mode[0] in "IF":
                raise ConfigError(f"{path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
            if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
                seen = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
            image = image.convert(_MODES[channels])
    except ConfigError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error
    if image.size != (size, size):
        if not resize:
            raise ConfigError(
                f"{path} is {image.width}x{image.height}, the model takes {size}x{size}: resize the images, "
                f"or set model.image_size"
            )
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def read_idx(path: str | Path) -> np.ndarray:
    """A uint8 array of any rank from MNIST's IDX format (LeCun, "The MNIST database", file formats), gzipped or not.

    The file is 0, 0, 8 (unsigned bytes), the rank; each size as a big-endian int32; the bytes, last dimension fastest.
    Raises ConfigError for another file, or one that is too short or too long.
    """
    try:
        data = read_bytes(str(path)) if "://" in str(path) else Path(path).read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path} cannot be read: {reason}; fetch it again") from error
    if data[:3] != b"\0\0\x08" or len(data) < 4:
        raise ConfigError(f"{path} starts with {data[:4].hex() or 'nothing'}; an IDX file of bytes starts with 000008")
    rank = data[3]
    start = 4 + 4 * rank
    sizes = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4", count=min(rank, (len(data) - 4) // 4)))
    expected = start + math.prod(sizes)
    if len(sizes) < rank or len(data) != expected:
        state = "cut short" if len(sizes) < rank or len(data) < expected else "too long"
        raise ConfigError(f"{path} is {state}: {len(data)} bytes, {expected} for sizes {sizes}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy()


def augment(
    images_BHWC: np.ndarray,
    keys_B: np.ndarray,
    *,
    flip: bool = False,
    crop_pixels: int = 0,
    rotate_degrees: float = 0.0,
    scale: float = 0.0,
) -> np.ndarray:
    """Each row changed as its uint64 key decides: float32 [B, H, W, C], in the units it came in, zeros past the edges.

    flip: mirror half of the rows left to right.
    crop_pixels: shift by a whole number of pixels, up to so many each way (a padded image's crop: He et al. 2016, 4.2).
    rotate_degrees, scale: turn by up to so many degrees, magnify by 1 - scale to 1 + scale, about the centre, bilinear.

    A row's result depends on its key and its pixels only. Raises ConfigError for a switch out of range.
    """
    if min(crop_pixels, rotate_degrees, scale) < 0 or scale >= 1:
        raise ConfigError(f"crop_pixels={crop_pixels} rotate_degrees={rotate_degrees} scale={scale}: none may be "
                          f"negative, and scale must be below 1")  # fmt: skip
    images_BHWC, keys_B = np.asarray(images_BHWC), np.asarray(keys_B)
    if images_BHWC.ndim != 4 or keys_B.shape != images_BHWC.shape[:1]:
        raise ConfigError(f"images {images_BHWC.shape} and keys {keys_B.shape}: they must be [B, H, W, C] and [B]")
    out_BHWC = images_BHWC.astype(np.float32)
    mirrored, down, right, turn, zoom = (uniform(keys_B, number) for number in range(5))
    if flip:
        out_BHWC = np.where((mirrored < 0.5)[:, None, None, None], out_BHWC[:, :, ::-1], out_BHWC)
    if not (crop_pixels or rotate_degrees or scale):
        return out_BHWC
    from scipy import ndimage  # slow to import

    shift_B2 = np.floor(np.stack([down, right], axis=1) * (2 * crop_pixels + 1)) - crop_pixels
    angle_B = np.radians((2 * turn - 1) * rotate_degrees)
    zoom_B = 1 + (2 * zoom - 1) * scale
    centre = (np.array(out_BHWC.shape[1:3]) - 1) / 2
    for image_HWC, shift, angle, magnified in zip(out_BHWC, shift_B2, angle_B, zoom_B, strict=True):
        cos, sin = math.cos(angle) / magnified, math.sin(angle) / magnified
        matrix = np.array([[cos, -sin], [sin, cos]])  # from a pixel of the result to where it is taken from
        offset = centre - matrix @ (centre + shift)
        for channel in range(image_HWC.shape[-1]):
            # grid-constant: a coordinate that rounding puts just outside the edge is not lost
            image_HWC[..., channel] = ndimage.affine_transform(
                image_HWC[..., channel], matrix, offset, order=1, mode="grid-constant"
            )
    return out_BHWC
