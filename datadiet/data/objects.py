"""Datasets of objects that a program has already: arrays, a datasets.Dataset, a torch.utils.data.Dataset.

They are known by what they can do, so that neither library is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datadiet.data.dataset import CHUNK, Dataset, Splits, assembled, numbered
from datadiet.data.doubts import tell_doubts
from datadiet.data.reading import Reading
from datadiet.data.registry import noting, tell_notes
from datadiet.data.sources.arrays import as_examples, as_labels, named_classes
from datadiet.data.sources.base import Obstacles
from datadiet.data.sources.images import look, read_images, resize, stacked
from datadiet.errors import UserError
from datadiet.progress import counting

IMAGES = ("image", "images", "img", "pixel_values", "x", "input", "inputs", "data")
LABELS = ("label", "labels", "fine_label", "y", "target", "targets")
LOOKS = 20  # items that are looked at twice: of a flip by chance one in a million passes
REPAIRS = ("image_size",)  # parameters of dataset_from that a refusal of images may advise
EXPECTED = (
    "(images, labels) as arrays, a datasets.Dataset, or a torch.utils.data.Dataset or other sequence of (image, label)"
)


class Part(NamedTuple):
    """One split, as it was given."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] = ()  # by number of the label, or ()


def dataset_from(
    train: Any, test: Any, *, name: str = "objects", ids: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None, image_size: int | str | None = None,
) -> Dataset:  # fmt: skip
    """A dataset of what a program has in memory, in its own order; the same ids and fingerprint as of the same arrays
    in an npz file.

    Args:
        train, test: Each (images, labels), arrays or tensors as `npz:` takes them; a `datasets.Dataset` with one image
            and one label column, whose images are decoded here and transforms left out; or a
            `torch.utils.data.Dataset`, or any sequence, of (image, label) pairs or of dictionaries with both, as PIL
            images or arrays, without random transforms.
        name: Of the data, for messages and records.
        ids: N names of the training examples; None: train_000000, …
        class_names: C names; None: of a feature or an attribute `classes`, where there is one.
        image_size: As for `load_dataset`.
    Returns:
        Images uint8 [N, H, W, D] or vectors float32 [N, D]; labels int32 [N].
    Raises:
        UserError: something else, images of several sizes, normalised or random ones, labels of no clear meaning.
    """
    reading = Reading.asked(image_size)
    with noting() as notes:
        splits = _splits(name, (train, test), reading, ids, tuple(map(str, class_names or ())))
        dataset = assembled(name, splits)
        tell_doubts(dataset)
    dataset = replace(dataset, notes=tuple(notes))
    tell_notes(dataset, stacklevel=3)
    return dataset


def _splits(
    name: str, given: tuple[Any, Any], reading: Reading, ids: Sequence[str] | None, class_names: tuple[str, ...]
) -> Splits:
    """Arrays of training and test set, and names."""
    parts = {which: _part(f"{name}, {which}", one, reading) for which, one in zip(("train", "test"), given)}
    images, test_images = as_examples(name, {which: part.images for which, part in parts.items()})
    (labels, test_labels), found = as_labels(name, {which: part.labels for which, part in parts.items()})
    if reading.shape:
        images, test_images = (resize(name, one, reading) for one in (images, test_images))
    names = named_classes(name, class_names or _names(name, parts), found, 1 + int(labels.max(initial=-1)))
    example_ids = numbered("train", len(images)) if ids is None else np.array([str(one) for one in ids])
    return Splits(images, labels, test_images, test_labels, example_ids, names)


def _names(name: str, parts: Mapping[str, Part]) -> tuple[str, ...]:
    train, test = (part.class_names for part in parts.values())
    if train and test and train != test:
        raise UserError(
            f"{name}: train has the classes {', '.join(train[:8])}, test {', '.join(test[:8])}; expected the same in "
            "the same order."
        )
    return train or test


def _part(what: str, given: Any, reading: Reading) -> Part:
    """Images and labels of one split.

    Raises:
        UserError: it is nothing that is known.
    """
    if isinstance(given, Dataset | str | Path):
        raise UserError(f"{what}: got {type(given).__name__}; expected {EXPECTED}. Files are read by dd.load_dataset.")
    if isinstance(given, tuple) and len(given) == 2:
        return Part(_array(f"{what}: images", given[0]), _array(f"{what}: labels", given[1]))
    if hasattr(given, "with_format") and hasattr(given, "features"):
        return _of_hugging_face(what, given, reading)
    if isinstance(given, Mapping):
        raise UserError(f"{what}: got splits or columns {', '.join(map(str, given))}; expected one split: {EXPECTED}.")
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise UserError(f"{what}: got {type(given).__name__}, which has no length or no items; expected {EXPECTED}.")
    return _of_items(what, given, reading)


def _array(what: str, values: Any) -> np.ndarray:
    """Arrays, tensors of any library and lists as an array."""
    for step in ("detach", "cpu"):  # a tensor that is on a device, or that gradients flow through
        if callable(change := getattr(values, step, None)):
            values = change()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what}: {type(values).__name__} cannot be read as one array ({error}).") from error


# --- datasets.Dataset -------------------------------------------------------------------------


def _of_hugging_face(what: str, given: Any, reading: Reading) -> Part:
    """Its stored cells, undecoded, by way of Arrow; as `parquet:` reads them."""
    from datadiet.data.sources.columns import find_columns, plain_labels

    if not hasattr(given, "__len__"):
        raise UserError(f"{what}: a stream without a length; expected {EXPECTED}.")
    names = {column: tuple(getattr(feature, "names", None) or ()) for column, feature in given.features.items()}
    stored = given.with_format("arrow")
    classes = [column for column in names if names[column]]
    image, label = find_columns(what, stored[:1].schema, classes, lists=True)
    cells: list[Any] = []
    labels: list[np.ndarray] = []
    for start in range(0, len(given), CHUNK):
        table = stored[start : start + CHUNK]
        if table[label].null_count:
            raise UserError(f"{what}: {table[label].null_count} rows without a label; leave these rows out.")
        cells += table[image].to_pylist()
        labels.append(plain_labels(table[label]))
    found = np.concatenate(labels) if labels else np.empty(0, np.int64)
    if not all(isinstance(cell, bytes | dict) for cell in cells):
        return Part(_array(f"{what}: {image}", cells), found, names[label])
    encoded = [_cell(what, i, cell) for i, cell in enumerate(cells)]
    obstacles = Obstacles(what, REPAIRS)
    images = read_images(obstacles, [f"row {i}" for i in range(len(encoded))], encoded.__getitem__, reading)
    obstacles.check()
    return Part(images.pixels, found, names[label])


def _cell(what: str, row: int, cell: Any) -> bytes | Path:
    """What is in an image's file, or the file."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is not None:
        return content
    if not path:
        raise UserError(f"{what}: row {row} has no image; leave it out.")
    return Path(path)


# --- sequences of items -----------------------------------------------------------------------


def _of_items(what: str, given: Any, reading: Reading) -> Part:
    count = len(given)
    if not count:
        raise UserError(f"{what}: it is empty; expected examples.")
    pictures, labels = _is_picture(_pair(what, 0, given[0])[0]), []

    def images() -> Iterator[Any]:
        with counting(count, what) as advance:
            for i in range(count):
                image, label = _pair(what, i, given[i])
                if _is_picture(image) != pictures:
                    raise UserError(f"{what}: item 0 or item {i} is a picture, the other an array; expected one kind.")
                labels.append(label.tolist())
                if i in looked:
                    first[i] = image if pictures else image.copy()  # which may be one buffer for all
                yield image
                advance(1)

    looked = {*np.linspace(0, count - 1, min(LOOKS, count)).astype(int).tolist()}
    first: dict[int, Any] = {}
    found = _pictures(what, count, images(), reading) if pictures else _arrays(what, images())
    for i, image in first.items():
        again, label = _pair(what, i, given[i])
        one = np.asarray(image)
        if not np.array_equal(one, np.asarray(again), equal_nan=one.dtype.kind == "f"):
            raise UserError(
                f"{what}: item {i} is another image at every look; expected one without random transforms: they are "
                "done while training (augment=true)."
            )
        if str(label.tolist()) != str(labels[i]):  # NaN, which is refused as such, is itself
            raise UserError(f"{what}: item {i} has another label at every look; expected one for each image.")
    return Part(found, _array(f"{what}: labels", labels), _classes_of(given))


def _pictures(what: str, count: int, images: Iterable[Any], reading: Reading) -> np.ndarray:
    """Images of Pillow as one array."""
    obstacles, names = Obstacles(what, REPAIRS), [f"item {i}" for i in range(count)]
    found = stacked(obstacles, names, map(look, images, names, repeat(reading)), reading).pixels
    obstacles.check()
    return found


def _arrays(what: str, given: Iterable[Any]) -> np.ndarray:
    """Arrays as one, grey ones among coloured ones with three channels."""
    images = list(given)
    if {image.ndim for image in images} == {2, 3}:
        images = [np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image for image in images]
    sizes = {image.shape: i for i, image in reversed(list(enumerate(images)))}
    if len(sizes) > 1:
        told = ", ".join(f"{list(shape)} (the first: item {i})" for shape, i in sorted(sizes.items())[:8])
        raise UserError(
            f"{what}: images of {len(sizes)} shapes, {told}; expected one: give image_size=N, or a transform."
        )
    return np.stack(images)


def _pair(what: str, i: int, item: Any) -> tuple[Any, np.ndarray]:
    """Image, a picture of Pillow or an array, and label of an item."""
    if isinstance(item, Mapping):
        keys = [next((name for name in known if name in item), None) for known in (IMAGES, LABELS)]
        found = [item[key] for key in keys if key is not None]
    else:
        found = list(item) if isinstance(item, tuple | list) else []
    if len(found) != 2:
        got = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        got += f" with {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
        raise UserError(f"{what}: item {i} is {got}; expected (image, label), or a dictionary with image and label.")
    image, label = found
    shown = image if _is_picture(image) else _array(f"{what}: item {i}", image)
    return shown, _array(f"{what}: label {i}", label)


def _is_picture(image: Any) -> bool:
    """Of Pillow."""
    return hasattr(image, "getbands")


def _classes_of(given: Any) -> tuple[str, ...]:
    """The attribute `classes` of a dataset, or of what it is a subset of."""
    seen = 0
    while not getattr(given, "classes", None) and hasattr(given, "dataset") and seen < 10:
        given, seen = given.dataset, seen + 1
    found = getattr(given, "classes", None)
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()
