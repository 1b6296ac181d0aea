"""Pictures in files, as a person sees them: upright, on black, with eight bits a colour."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["PICTURES", "read_image"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""What the names of pictures end with."""

_MODES = {1: "L", 3: "RGB"}


def read_image(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a picture of any size, scaled to fit `shape` (channels, height, width), on black.

    It is turned as its EXIF data say that the camera was held. Black shines through what is
    transparent. Of a grey picture of 16 bits the upper eight are kept.

    Raises `ValueError` if it is broken.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = _MODES[channels]
    try:
        with Image.open(path) as picture:
            upright = _in_bytes(ImageOps.exif_transpose(picture))
            transparent = upright.has_transparency_data
            plain = upright.convert("RGBA" if transparent else mode)
            fitted = ImageOps.pad(plain, (width, height), color=0)
            if transparent:
                black = Image.new("RGBA", fitted.size, (0, 0, 0, 255))
                fitted = Image.alpha_composite(black, fitted)
            pixels = np.asarray(fitted.convert(mode))
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no picture that can be read ({error})") from error
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _in_bytes(picture: Picture) -> Picture:
    """Return a grey picture of 16 bits in eight: Pillow would make all above 255 white."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, (1 << 16) - 1) >> 8).astype(np.uint8))
