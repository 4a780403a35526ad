"""What a notebook shows of an object: facts and small images as HTML. Text of users is text there, never markup."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from datadiet.printable import printable

PIXELS = 56  # of a thumbnail, as it is shown
STYLE = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"

warnings.filterwarnings("ignore", "IProgress not found")  # of libraries whose bars nobody sees; ours need no ipywidgets


def shown(text: object) -> str:
    """Text in HTML."""
    return html.escape(printable(text))


def facts(title: str, told: Mapping[str, object], beside: str = "") -> str:
    """A title, a line for each fact, and HTML below."""
    rows = "".join(
        f'<tr><th style="{STYLE}">{shown(name)}</th><td style="{STYLE}">{shown(value)}</td></tr>'
        for name, value in told.items()
    )
    return f"<div><b>{shown(title)}</b><table>{rows}</table>{beside}</div>"


def picture(png: bytes, words: str, width: int | None = None) -> str:
    """An image that is part of the page."""
    size = "" if width is None else f' width="{width}" style="image-rendering:pixelated;margin:1px"'
    source = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{source}" alt="{shown(words)}" title="{shown(words)}"{size}>'


def thumbnails(images: np.ndarray, words: Sequence[str]) -> str:
    """Images uint8 [K, H, W, D] side by side, each with its words."""
    from PIL import Image  # here, because names alone need no Pillow

    found = []
    for image, told in zip(images, words, strict=True):
        buffer, channels = io.BytesIO(), image.shape[-1]
        pixels = image[..., 0] if channels in (1, 2) else image[..., :3]
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
        found.append(picture(buffer.getvalue(), told, PIXELS))
    return "".join(found)
