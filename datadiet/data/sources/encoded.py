"""Image files by what they tell of themselves, and image files out of arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datadiet.data.sources.images import BROKEN, FORMATS, RESAMPLING, decode, orientation
from datadiet.errors import UserError
from datadiet.intake import size_of


class ImageFacts(NamedTuple):
    """What an image file tells of itself."""

    size: tuple[int, int]  # width and height, as it is read: turned as its EXIF data says
    mode: str
    bytes: int


def facts_of(path: Path, whole: bool) -> ImageFacts | str:
    """What an image file is; or, in words, why it is none.

    Args:
        whole: Decode it, which finds what is damaged behind its begin.
    """
    try:
        stored = size_of(path)
        if whole:
            image = decode(path, path.name)
            sideways = orientation(image) > 4
        else:
            with Image.open(path, formats=FORMATS) as image:
                sideways = image.format != "TIFF" and orientation(image) > 4  # whose size Pillow tells turned
    except (UserError, *BROKEN) as error:
        return str(error)
    width, height = image.size
    return ImageFacts((height, width) if sideways else (width, height), image.mode, stored)


def encoded(image: np.ndarray) -> bytes:
    """An image, uint8 [H, W, D] of 1 or 3 channels, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def strip(images: Sequence[np.ndarray], side: int) -> bytes:
    """Images, uint8 [H, W, D] each of 1 or 3 channels, beside each other as PNG: each fitted into a square of so many
    pixels, small ones enlarged by whole numbers so that their pixels can be seen."""
    gap = max(1, side // 16)
    whole = Image.new("RGB", (len(images) * (side + gap) - gap, side), "white")
    for place, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
        scale = side / max(image.size)
        width, height = (max(1, round(length * (int(scale) if scale >= 1 else scale))) for length in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST if scale >= 1 else RESAMPLING)
        whole.paste(image, (place * (side + gap) + (side - width) // 2, (side - height) // 2))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()
