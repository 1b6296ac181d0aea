"""Inputs as a person sees them: pictures for a page that needs no other file, or numbers."""

from __future__ import annotations

import base64
import io

import numpy as np
from torch import Tensor

__all__ = ["as_picture", "is_picture"]


def is_picture(values: Tensor) -> bool:
    """Return whether an input, [C, H, W], is grey or in colours, and larger than a dot."""
    return values.dim() == 3 and values.shape[0] in (1, 3) and min(values.shape[1:]) > 1


def as_picture(values: Tensor, like: Tensor) -> str:
    """Return a data URI of a PNG of `values`, [C, H, W], black and white where `like` is."""
    from PIL import Image

    low, high = float(like.min()), float(like.max())
    scaled = (values.double() - low) / ((high - low) or 1.0)
    pixels = (scaled.clamp(0, 1).nan_to_num() * 255).round().numpy().astype(np.uint8)
    drawn = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
