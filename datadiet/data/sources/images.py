"""Image files to one uint8 array, by Pillow alone, so that pixels do not depend on what else is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from datadiet.errors import UserError

GREY = ("1", "L", "LA")
DEEP = ("I", "F")  # and I;16…: more than 8 bits per channel, which uint8 cannot hold
BROKEN = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


def decode(opened: Path | BinaryIO, name: str) -> Image.Image:
    """A decoded image.

    Raises:
        UserError: not an image, damaged, or of more than 8 bits per channel.
    """
    try:
        with Image.open(opened) as image:
            image.load()
    except BROKEN as error:
        raise UserError(f"{name}: cannot be read as an image ({error}); replace or remove it.") from error
    if image.mode.startswith(DEEP):
        raise UserError(f"{name}: an image of mode {image.mode}; expected 8 bits per channel: convert it, to PNG say.")
    return image


def read_images(names: Sequence[str], opened: Callable[[int], Path | BinaryIO], *, colour: bool = False) -> np.ndarray:
    """All images, uint8 [N, H, W, D]; D is 1 where every one is grey, else 3.

    Args:
        names: What to call each image in an error; its length is N.
        opened: Path or open file of image i.
        colour: D = 3 even if all are grey. Transparency is dropped.
    Raises:
        UserError: an unreadable image, or images of different sizes.
    """
    images = np.empty((0,), np.uint8)
    for i, name in enumerate(names):
        image = decode(opened(i), name)
        grey = image.mode in GREY and not colour
        if i == 0:
            size = image.size
            images = np.empty((len(names), size[1], size[0], 1 if grey else 3), np.uint8)
        if image.size != size:
            raise UserError(
                f"{name}: {image.width} x {image.height} pixels, but {names[0]}: {size[0]} x {size[1]}; expected "
                "images of one size: resize them beforehand (with ImageMagick: mogrify -resize '32x32!' FILES)."
            )
        if not grey and images.shape[-1] == 1:
            images = np.repeat(images, 3, axis=-1)
        mode = "L" if images.shape[-1] == 1 else "RGB"
        images[i] = np.asarray(image if image.mode == mode else image.convert(mode)).reshape(images.shape[1:])
    return images
