"""Image files to one uint8 array, by Pillow alone, so that pixels do not depend on what else is installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from datadiet.data.cache import room
from datadiet.data.reading import AS_IT_IS, Reading, remark
from datadiet.data.sources.base import Obstacles
from datadiet.errors import UserError
from datadiet.intake import check_size, size_of
from datadiet.printable import visible
from datadiet.progress import in_order

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")  # no other decoder is asked, whatever the bytes
EXPLAINED = 2000  # bytes of pixels that a byte of a file may stand for; a blank PNG has half of that
SMALL = 2**24  # bytes of pixels that any file may have
SIGNATURES = (  # how files of FORMATS begin
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", *(b"P%d" % i for i in range(1, 7)),
)  # fmt: skip
SHOWN = 10  # of what is counted, by name
ADVISED = 64  # pixels of the size that is advised, at most
LINE = 200  # characters of why an image cannot be read, but for the first
RESAMPLING = Image.Resampling.BICUBIC
GREY = ("1", "L", "LA")
DEEP = ("I", "F")  # and I;16…: more than 8 bits per channel, which uint8 cannot hold
BITS = 258  # TIFF's tag for the bits of each channel
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
    with _strictly():
        return _decode(given, name).image


@contextmanager
def _strictly() -> Iterator[None]:
    """What Pillow only warns of is refused; in all threads, for the length of a `with` block."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class _Decoded(NamedTuple):
    """An image, and what its file says of it, whatever the image says once it is decoded."""

    image: Image.Image
    turned: bool  # by its EXIF data
    several: bool  # frames, of which it is the first


def _decode(given: Path | bytes | Image.Image, name: str) -> _Decoded:
    if not isinstance(given, Image.Image):
        image, turned, several = _opened(given, name)
        return _Decoded(image, turned or orientation(image) != 1, several)
    _check_depth(name, given)
    return _Decoded(given, orientation(given) != 1, _is_first(given))


def _is_first(image: Image.Image) -> bool:
    """Whether it is the first of several frames; False where its file is closed by now."""
    with suppress(AttributeError, ValueError):
        return getattr(image, "n_frames", 1) > 1 and image.tell() == 0
    return False


def _opened(given: Path | bytes, name: str) -> _Decoded:
    stored = 0
    try:
        opened, stored = (io.BytesIO(given), len(given)) if isinstance(given, bytes) else (given, size_of(given))
        image = Image.open(opened, formats=FORMATS)
        with image:
            _check_pixels(name, image, stored)
            _check_depth(name, image)
            found = _Decoded(image, orientation(image) != 1, _is_first(image))
            image.load()  # which turns TIFF; some of PNG have their EXIF data at their end
            return found
    except UnidentifiedImageError as error:  # which names no more than the file, or an address in memory
        why = f"cannot identify it as one of {', '.join(FORMATS)}" if stored else "it is empty"
        raise UserError(f"{name}: cannot be read as an image ({why})") from error
    except BROKEN as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from error


def orientation(image: Image.Image) -> int:
    """How its EXIF data says that an image is turned, 1 to 8; 1: it is upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _check_pixels(name: str, image: Image.Image, stored: int) -> None:
    """Refuse what its header says of an image, where its file cannot have that much."""
    pixels = image.width * image.height * len(image.getbands())
    if pixels > SMALL:
        check_size(f"{name}: {image.width} x {image.height} pixels", pixels, stored, times=EXPLAINED, small=SMALL)


def _check_depth(name: str, image: Image.Image) -> None:
    """Refuse more than 8 bits per channel: of 16 in colours Pillow would keep the higher 8 without a word."""
    layout = [tile[3] for tile in getattr(image, "tile", ())]  # of the file; none is left once it is decoded
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        deep = max(image.tag_v2.get(BITS, (1,))) > 8
    elif image.format == "PPM":
        deep = any(isinstance(one, tuple) and one[-1] > 255 for one in layout)
    else:
        deep = image.format == "PNG" and any(";16" in one for one in layout)
    if deep or image.mode.startswith(DEEP):
        more = "" if image.mode.startswith(DEEP) else " with more bits than are read"
        raise UserError(f"{name}: an image of mode {image.mode}{more}; expected 8 bits per channel, scaled to 0 … 255")


def _room(count: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """An array for so many images of a size (width, height); refused where neither memory nor disk takes so many."""
    return room(f"{count} images of {size[0]} x {size[1]} pixels", (count, size[1], size[0], channels))


class Seen(NamedTuple):
    """One image that was looked at."""

    pixels: np.ndarray  # uint8 [H, W] or [H, W, 3]
    size: tuple[int, int]  # width and height as it is seen, before it is resized
    turned: bool
    transparent: bool
    several: bool  # frames in its file, of which it is the first


def look(given: Path | bytes | Image.Image, name: str, reading: Reading) -> Seen | UserError:
    """An image as it is seen: turned as its EXIF data says, on white where it is transparent, of the size that is
    asked for; or why it cannot be read."""
    try:
        image, turned, several = _decode(given, name)
        image, transparent = on_white(ImageOps.exif_transpose(image))
        mode = "L" if image.mode in GREY else "RGB"
        plain = image if image.mode == mode else image.convert(mode)
        return Seen(np.asarray(fitted(plain, reading)), image.size, turned, transparent, several)
    except UserError as error:
        return error
    except Exception as error:  # whatever else damage leads Pillow to
        return UserError(f"{name}: cannot be read as an image ({error})")


class Images(NamedTuple):
    """Images in one array."""

    pixels: np.ndarray  # uint8 [M, H, W, D]
    good: np.ndarray  # int64 [M], positions among those that were asked for; all, where none are left out
    skipped: tuple[str, ...]  # names of those that are left out


def read_images(
    obstacles: Obstacles, names: Sequence[str], given: Callable[[int], Path | bytes], reading: Reading = AS_IT_IS, *,
    colour: bool = False,
) -> Images:  # fmt: skip
    """All images as one array; D is 1 where every one is grey, else 3.

    They are decoded in as many threads as there are processors, with a bar where that takes more than a second.

    Args:
        names: What to call each image; its length is N.
        given: File of image i, or what is in it.
        obstacles, reading, colour: As for `stacked`.
    Raises:
        UserError: more images than memory takes.
    """
    found = in_order(lambda i: look(given(i), names[i], reading), len(names), obstacles.name)
    return stacked(obstacles, names, found, reading, colour=colour)


def stacked(
    obstacles: Obstacles, names: Sequence[str], found: Iterable[Seen | UserError], reading: Reading, *,
    colour: bool = False,
) -> Images:  # fmt: skip
    """Images that were looked at as one array. That they are turned, put on white, resized or left out is said.

    Args:
        obstacles: Told of images that cannot be read, all of them, and of several sizes; where there are any, those
            before this call included, no pixels are kept.
        names: What to call each image; its length is N.
        found: N of them, or why they cannot be read.
        reading: Their size, and whether those that cannot be read are left out.
        colour: D = 3 even if all are grey.
    """
    stack = _Stack(len(names), colour, keep=not obstacles.found)
    bad: dict[str, str] = {}  # name -> why
    with _strictly():
        for i, one in enumerate(found):
            if isinstance(one, UserError):
                bad[names[i]] = str(one)
            else:
                stack.add(i, one, reading)
    _conclude(obstacles, names, stack, bad, reading)
    skipped = tuple(map(visible, bad)) if reading.skip_bad else ()
    return Images(stack.pixels[: len(stack.good)], np.array(stack.good, np.int64), skipped)


def _conclude(obstacles: Obstacles, names: Sequence[str], stack: _Stack, bad: dict[str, str], reading: Reading) -> None:
    """Add what stands in the way; where nothing does, say what became of the images."""
    if bad and (not reading.skip_bad or len(bad) == len(names)):
        first, *others = [*bad.values()][:SHOWN]
        lines = [first, *(why if len(why) <= LINE else f"{why[:LINE]}…" for why in others), *_more(len(bad))]
        obstacles.add(
            f"{len(bad)} of {len(names)} images cannot be read:",
            lines=lines,
            **({"skip_bad": True} if len(bad) < len(names) else {}),
        )
    if reading.shape is None and len(stack.sizes) > 1:
        what = f"images of {len(stack.sizes)} sizes; expected images of one size:"
        obstacles.add(what, lines=stack.table(names), image_size=stack.advised())
    if not obstacles.found:
        stack.tell(obstacles.name, reading)
        if bad:
            shown = ", ".join([*[*bad][:SHOWN], *_more(len(bad))])
            remark(f"{obstacles.name}: {len(bad)} images cannot be read and are left out: {shown}.")


def _more(count: int) -> list[str]:
    return [f"… and {count - SHOWN} more"] if count > SHOWN else []


class _Stack:
    """Images as they come, one upon the other."""

    def __init__(self, count: int, colour: bool, keep: bool) -> None:
        self.count, self.colour, self.keep = count, colour, keep
        self.pixels = np.empty((0,), np.uint8)
        self.good: list[int] = []
        self.sizes: dict[tuple[int, int], list[int]] = {}  # (width, height) -> images
        self.turned = self.transparent = self.several = 0

    def add(self, i: int, seen: Seen, reading: Reading) -> None:
        self.sizes.setdefault(seen.size, []).append(i)
        self.turned += seen.turned
        self.transparent += seen.transparent
        self.several += seen.several
        self.keep = self.keep and (reading.shape is not None or len(self.sizes) == 1)
        if not self.keep:
            return
        size, grey = (seen.pixels.shape[1], seen.pixels.shape[0]), seen.pixels.ndim == 2
        if not self.good:
            self.pixels = _room(self.count, size, 1 if grey and not self.colour else 3)
        if not grey and self.pixels.shape[-1] == 1:
            grey_ones, self.pixels = self.pixels, _room(self.count, size, 3)
            self.pixels[: len(self.good)] = grey_ones[: len(self.good)]
        self.pixels[len(self.good)] = seen.pixels[..., None] if grey else seen.pixels
        self.good.append(i)

    def table(self, names: Sequence[str]) -> list[str]:
        """Which sizes there are, in lines, those of most images first."""
        sizes = sorted(self.sizes.items(), key=lambda item: (-len(item[1]), item[0]))
        lines = [f"{w} x {h} pixels: {len(at)} ({visible(names[at[0]])}{' …' * (len(at) > 1)})"
                 for (w, h), at in sizes[:SHOWN]]  # fmt: skip
        return lines + _more(len(sizes))

    def advised(self) -> int:
        """The shorter side that half of the images have or exceed; at most ADVISED."""
        return min(ADVISED, median_low([min(size) for size, at in self.sizes.items() for _ in at]))

    def tell(self, name: str, reading: Reading) -> None:
        """Say what became of the images."""
        counts = [(self.turned, "are turned as their EXIF data says"),
                  (self.transparent, "are put on white where transparent"),
                  (self.several, "are the first of several frames of their files; others are not used")]  # fmt: skip
        if reading.shape is not None:
            height, width = reading.shape
            others = {size: len(at) for size, at in self.sizes.items() if size != (width, height)}
            larger = sum(count for size, count in others.items() if size[0] < width or size[1] < height)
            how = "" if reading.exact else ", the shorter side, and the centre taken"
            enlarged = f", {larger} of them enlarged" if larger else ""
            counts.append((sum(others.values()), f"are resized to {width} x {height} pixels{how}{enlarged}"))
        for count, what in counts:
            if count:
                remark(f"{name}: {count} of {sum(map(len, self.sizes.values()))} images {what}.")


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
