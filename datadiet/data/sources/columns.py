"""Columns of Arrow tables, as Hugging Face's data sets have them: which has the images, which the labels."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from datadiet.errors import UserError

LABEL_NAMES = ("label", "labels", "fine_label")  # the first of these, else the only ClassLabel; never another column


def find_columns(name: str, schema: pa.Schema, classes: list[str], *, lists: bool = False) -> tuple[str, str]:
    """Names of the image and of the label column.

    Args:
        classes: Columns of labels whose classes have names.
        lists: Where no column has encoded images, one of lists of numbers is taken for them.
    Raises:
        UserError: there is not one of each.
    """

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)

    images = [field.name for field in schema if is_image(field.type)]
    if lists and not images:
        images = [field.name for field in schema if _is_list(field.type)]
    label = next((name for name in LABEL_NAMES if name in schema.names), classes[0] if len(classes) == 1 else None)
    if len(images) != 1 or label is None or not _is_label(schema.field(label).type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{name}: columns {columns}; expected one image column (struct of bytes and path, or binary) and one "
            f"called {' or '.join(LABEL_NAMES)}, of whole numbers, texts or truth values."
        )
    return images[0], label


def _is_list(kind: pa.DataType) -> bool:
    kind = getattr(kind, "storage_type", kind)  # of an extension, as datasets makes one of arrays
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    fitting = (types.is_integer, types.is_boolean, types.is_floating, _is_text)
    return any(fits(kind) for fits in fitting)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def hugging_face_classes(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names of the classes from Hugging Face's metadata, or ()."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        return ()


def plain_labels(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Labels [N] as NumPy has them, texts as texts."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = column.cast(kind)
    if _is_text(kind):
        return np.array(values.to_pylist(), dtype=str)
    return np.array(values.to_pylist()) if pa.types.is_boolean(kind) else values.to_numpy()
