"""Pictures as models take them: RGB bytes, of the camera's size."""

from __future__ import annotations

import io

import numpy as np

from ..errors import EdgewmError
from .episode import needed

Array = np.ndarray
CHANNELS = 3


def rgb(pictures: Array, where: str) -> Array:
    """(N, H, W, 3) uint8 of pictures (N, H, W, 3) or (N, 3, H, W). EdgewmError for anything else."""
    if pictures.ndim != 4 or CHANNELS not in (pictures.shape[-1], pictures.shape[1]):
        what = f"pictures of shape {pictures.shape[1:]}"
        raise EdgewmError(what, where, "record RGB: (T, H, W, 3) or (T, 3, H, W)")
    if pictures.dtype != np.uint8:
        raise EdgewmError(f"pictures of {pictures.dtype}", where, "record uint8, 0 to 255")
    return pictures if pictures.shape[-1] == CHANNELS else np.moveaxis(pictures, 1, -1)


def decoded(picture: bytes, where: str) -> Array:
    """(H, W, 3) uint8 of a picture in a file's format: PNG, JPEG. EdgewmError for one that is none, or not RGB."""
    image = needed("PIL.Image", "a picture", where)
    try:
        opened = image.open(io.BytesIO(picture))
        opened.load()
    except (OSError, SyntaxError, ValueError) as fault:
        raise EdgewmError(f"a picture cannot be read: {fault}", where, "copy or record the data again") from fault
    if opened.mode != "RGB":
        raise EdgewmError(f"a picture of mode {opened.mode}", where, "record RGB")
    return np.asarray(opened)


def sized(pictures: Array, height: int, width: int) -> Array:
    """The same pictures (N, H, W, 3) of that size, each side by itself; bilinear, over what a pixel covers."""
    if pictures.shape[1:3] == (height, width):
        return np.ascontiguousarray(pictures)
    from PIL import Image

    size, how = (width, height), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(p)).resize(size, how)) for p in pictures])
