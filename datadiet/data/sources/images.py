"""Image files to one uint8 array, by Pillow alone, so that pixels do not depend on what else is installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from datadiet.data.reading import Reading, remark
from datadiet.errors import UserError
from datadiet.intake import check_memory, check_size, size_of

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")  # no other decoder is asked, whatever the bytes
EXPLAINED = 2000  # bytes of pixels that a byte of a file may stand for; a blank PNG has half of that
SMALL = 2**24  # bytes of pixels that any file may have
SIGNATURES = (  # how files of FORMATS begin
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", *(b"P%d" % i for i in range(1, 7)),
)  # fmt: skip
RESAMPLING = Image.Resampling.BICUBIC
GREY = ("1", "L", "LA")
DEEP = ("I", "F")  # and I;16…: more than 8 bits per channel, which uint8 cannot hold
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


def decode(given: Path | bytes, name: str) -> Image.Image:
    """A decoded image.

    Args:
        given: Its file, or what is in it.
    Raises:
        UserError: not an image of FORMATS, damaged, of more pixels than its size can explain, or of more than 8 bits
            per channel.
    """
    opened, stored = (io.BytesIO(given), len(given)) if isinstance(given, bytes) else (given, size_of(given))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(opened, formats=FORMATS)
        with image:
            _check_pixels(name, image, stored)
            image.load()
    except BROKEN as error:
        raise UserError(f"{name}: cannot be read as an image ({error}); replace or remove it.") from error
    if image.mode.startswith(DEEP):
        raise UserError(f"{name}: an image of mode {image.mode}; expected 8 bits per channel: convert it, to PNG say.")
    return image


def _check_pixels(name: str, image: Image.Image, stored: int) -> None:
    """Refuse what its header says of an image, where its file cannot have that much."""
    pixels = image.width * image.height * len(image.getbands())
    if pixels > SMALL:
        check_size(f"{name}: {image.width} x {image.height} pixels", pixels, stored, times=EXPLAINED, small=SMALL)


def _room(count: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """An array for so many images of a size (width, height); refused where memory takes no more."""
    check_memory(f"{count} images of {size[0]} x {size[1]} pixels", count * size[0] * size[1] * channels)
    return np.empty((count, size[1], size[0], channels), np.uint8)


def read_images(names: Sequence[str], given: Callable[[int], Path | bytes], *, colour: bool = False) -> np.ndarray:
    """All images, uint8 [N, H, W, D]; D is 1 where every one is grey, else 3.

    Args:
        names: What to call each image in an error; its length is N.
        given: File of image i, or what is in it.
        colour: D = 3 even if all are grey. Images are turned as their EXIF data says, and transparent parts are white;
            both are said.
    Raises:
        UserError: an unreadable image, images of different sizes, or more of them than memory takes.
    """
    images, turned, pasted = np.empty((0,), np.uint8), 0, 0
    for i, name in enumerate(names):
        image = decode(given(i), name)
        turned += image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        image, transparent = on_white(ImageOps.exif_transpose(image))
        pasted += transparent
        grey = image.mode in GREY and not colour
        if i == 0:
            size = image.size
            images = _room(len(names), size, 1 if grey else 3)
        if image.size != size:
            raise UserError(
                f"{name}: {image.width} x {image.height} pixels, but {names[0]}: {size[0]} x {size[1]}; expected "
                "images of one size: give copies of them that are."
            )
        if not grey and images.shape[-1] == 1:
            grey_ones, images = images, _room(len(names), size, 3)
            images[:i] = grey_ones[:i]
        mode = "L" if images.shape[-1] == 1 else "RGB"
        images[i] = np.asarray(image if image.mode == mode else image.convert(mode)).reshape(images.shape[1:])
    for count, what in ((turned, "are turned as their EXIF data says"), (pasted, "are put on white where transparent")):
        if count:
            remark(f"{count} of {len(names)} images {what}.")
    return images


def on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image without its transparency, behind which it is white, and whether any of it was transparent."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image, False
    whole = image.convert("LA" if image.mode in GREY else "RGBA")
    alpha = whole.getchannel("A")
    plain = whole.convert("L" if whole.mode == "LA" else "RGB")
    if alpha.getextrema()[0] == 255:  # nothing of it is transparent
        return plain, False
    white = Image.new(plain.mode, plain.size, "white")
    white.paste(plain, mask=alpha)
    return white, True


def fitted(image: Image.Image, reading: Reading) -> Image.Image:
    """An image (of mode L or RGB) of the size that is asked for, resampled once, with antialiasing; where it has that
    size or none is asked for, as it is."""
    if reading.shape in (None, (image.height, image.width)):
        return image
    height, width = reading.shape
    if reading.exact:
        return image.resize((width, height), RESAMPLING)
    scale = height / min(image.size)
    whole = max(height, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = ((side - height) // 2 for side in whole)
    return image.resize(whole, RESAMPLING).crop((left, top, left + height, top + height))


def resize(name: str, images: np.ndarray, reading: Reading) -> np.ndarray:
    """Images uint8 [N, H, W, D] in the size that is asked for; see `fitted`.

    Raises:
        UserError: they are vectors, or not grey or coloured.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{name}: image_size={reading.image_size}, but its examples are {images.dtype} {list(images.shape)}; only "
            "images of 1 or 3 channels can be resized."
        )
    if reading.shape is None or images.shape[1:3] == reading.shape:
        return images
    height, width = reading.shape
    found = _room(len(images), (width, height), images.shape[-1])
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        found[i] = np.asarray(fitted(image, reading)).reshape(found.shape[1:])
    return found


def looks_like_one(path: str) -> bool:
    """Whether a file begins as one of FORMATS does."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:  # which is told when it is read
        return True


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
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        else:
            with Image.open(path, formats=FORMATS) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    except (UserError, *BROKEN) as error:
        return str(error)
    return ImageFacts(image.size[::-1] if turned else image.size, image.mode, stored)


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
        size = tuple(max(1, round(length * (int(scale) if scale >= 1 else scale))) for length in image.size)
        image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else RESAMPLING)
        whole.paste(image, (place * (side + gap) + (side - size[0]) // 2, (side - size[1]) // 2))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()
