"""What data is, for people: as lines of text, and as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2

import datadiet
from datadiet import commands
from datadiet.data.inspect import SHOWN, Facts, Pair, counts, memory, samples
from datadiet.data.reading import Reading
from datadiet.errors import UserError
from datadiet.intake import shown
from datadiet.models.registry import MODELS, input_shape
from datadiet.printable import on_one_line, printable
from datadiet.runs.timing import Timing

CLASSES_SHOWN = 60  # with pictures
IMAGES_SHOWN = 8  # of each class
SIDE = 56  # pixels of a picture
SIZES_SHOWN = 12


# --- in words -----------------------------------------------------------------------------------


def headline(facts: Facts) -> str:
    """Whether it can be trained on, and how."""
    name = facts.asked.dataset
    if facts.dataset is None:
        return f"{name} cannot be read as it is, and no option is known that would let it."
    if facts.repairs:
        return f"{name} is refused as it is; with {_typed(facts.repairs)} it can be trained on."
    return f"{name} can be trained on as it is."


def _typed(options: dict[str, Any]) -> str:
    return " ".join(commands.option(name, value) for name, value in options.items())


def next_command(facts: Facts) -> str | None:
    """What to type to train on it; None where it cannot be read."""
    if facts.dataset is None:
        return None
    asked = facts.config
    return commands.command("study", dataset=asked.dataset, data_dir=asked.data_dir, **Reading.of(asked).given())


def what(facts: Facts) -> list[str]:
    """What there is, in sentences."""
    dataset, told = facts.dataset, []
    if dataset is not None:
        shape = "x".join(map(str, dataset.image_shape))
        kind = "vectors" if len(dataset.image_shape) == 1 else "images"
        told.append(
            f"{dataset.num_examples:,} training and {len(dataset.test_labels):,} test {kind} of {shape}, "
            f"{dataset.num_classes} classes."
        )
    if (found := facts.files) is not None:
        several = len(found.sizes)
        size = f"of {several} sizes" if several > 1 else f"all of {_size(next(iter(found.sizes)))}" if several else ""
        kinds = ", ".join(f"{count:,} {mode}" for mode, count in found.kinds.most_common())
        told.append(f"{sum(found.sizes.values()):,} image files {size} ({kinds}), {shown(found.bytes)} on disk.")
        if found.others:
            told.append(f"{len(found.others):,} other files are passed over, the first is {found.others[0]}.")
    return told


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def doubtful(facts: Facts) -> list[tuple[str, list[str]]]:
    """What is wrong or doubtful: a sentence, and the first of what it is about."""
    told: list[tuple[str, list[str]]] = []
    skipped = list(facts.dataset.skipped) if facts.dataset else []
    if bad := skipped or (facts.files.bad if facts.files else []):
        told.append((f"{len(bad):,} image files cannot be read{'' if not skipped else ', and are left out'}.", bad))
    if facts.doubts is None:
        return told
    found = facts.doubts
    if found.duplicates:
        told.append((f"{found.duplicates:,} training examples have the pixels of an earlier one.", []))
    if found.conflicts:
        told.append((f"{len(found.conflicts):,} of them have another label.", list(map(_pair, found.conflicts))))
    if found.leaks:
        known = f"{len(found.leaks):,} test examples have the pixels of a training example"
        told.append((f"{known}: on these, accuracy says nothing of new ones.", list(map(_pair, found.leaks))))
    if found.constant:
        told.append((f"{len(found.constant):,} training images are of one colour.", found.constant))
    return [*told, *_unbalanced(facts)]


def _pair(pair: Pair) -> str:
    return f"{pair.one} ({pair.one_class}) and {pair.other} ({pair.other_class})"


def _unbalanced(facts: Facts) -> list[tuple[str, list[str]]]:
    rows = counts(facts.dataset) if facts.dataset else []
    few = [f"{name}: {test}" for name, _, test in rows if test < 10]
    told = [(f"{len(few):,} of {len(rows):,} classes have fewer than 10 test examples.", few)] if few else []
    sizes = [train for _, train, _ in rows if train]
    if sizes and max(sizes) > 10 * min(sizes):
        told.append((f"The largest class has {max(sizes) / min(sizes):.0f} times the examples of the smallest.", []))
    return told


def done_with_it(facts: Facts) -> list[str]:
    """What is decided when it is read, and what becomes of it before a network sees it."""
    if facts.dataset is None:
        return []
    told = [*facts.dataset.notes, *facts.warnings]
    shape = facts.dataset.image_shape
    if len(shape) == 3:
        padded = [name for name in MODELS if _input(name, shape) not in (None, shape)]
        if padded:
            least = "x".join(map(str, _input(padded[0], shape) or ()))
            told.append(f"{', '.join(padded)} take it padded with zeros to {least}.")
        told.append("Pixels are divided by 255, less the mean of each channel, by its standard deviation.")
    else:
        told.append(f"Of the networks, {', '.join(n for n in MODELS if _input(n, shape))} take vectors.")
    return told


def _input(model: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return input_shape(model, shape)
    except UserError:
        return None


def costs(facts: Facts, timing: Timing | None) -> list[str]:
    """Memory and time, as far as they are known."""
    if facts.dataset is None:
        return []
    told = [f"{shown(memory(facts.dataset))} of memory, and as much in the cache on disk."]
    shape = facts.dataset.image_shape
    for name in MODELS:
        if (taken := _input(name, shape)) and taken != shape:
            told.append(f"{shown(memory(facts.dataset, taken))} on the device with {name}, beside the network.")
            break
    told.append(f"Reading it took {facts.seconds:.1f} s here; it is cached, and read again in a moment.")
    if timing is not None:
        told.append(
            f"A training of {timing.model}, {timing.num_steps:,} steps, takes {_duration(timing.training)} on this "
            f"{timing.device} ({timing.steps:,} steps took {timing.seconds:.1f} s), and {timing.compile_seconds:.0f} s "
            "to compile; evaluations come on top."
        )
    return told


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


# --- as text ------------------------------------------------------------------------------------


def text(facts: Facts, timing: Timing | None) -> str:
    """All of it for a terminal, but for the pictures."""
    lines = [headline(facts), *what(facts)]
    for number, refusal in enumerate(facts.refusals):
        lines += ["", "Refused as it is:" if not number else "Then refused:", *_indented(refusal.splitlines())]
    lines += _table("Images below", folders(facts)) + _table("Sizes", sizes(facts))
    if facts.dataset:
        rows = [(name, f"{train:,}", f"{test:,}") for name, train, test in counts(facts.dataset)]
        lines += _table("Classes", [("class", "training", "test"), *_cut(rows, 2 * SHOWN)])
    for sentence, names in doubtful(facts):
        lines += ["", sentence, *_indented(_few(names))]
    for title, sentences in (("What is done with it:", done_with_it(facts)), ("It takes:", costs(facts, timing))):
        lines += ["", title, *_indented(sentences)] if sentences else []
    if command := next_command(facts):
        lines += ["", "Train on it:", f"  {command}"]
    return "\n".join(map(on_one_line, lines))


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _few(names: Sequence[str]) -> list[str]:
    return [*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])]


def _cut(rows: list[tuple[str, ...]], most: int) -> list[tuple[str, ...]]:
    return rows if len(rows) <= most else [*rows[:most], (f"… and {len(rows) - most:,} more",)]


def _table(title: str, rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    width = max(len(row[0]) for row in rows)
    return ["", title, *(f"  {row[0]:<{width}}" + "".join(f"  {cell:>9}" for cell in row[1:]) for row in rows)]


def folders(facts: Facts) -> list[tuple[str, ...]]:
    """Images in each folder at the top of the data."""
    found = facts.files.folders if facts.files else {}
    return _cut([(name, f"{count:,}") for name, count in found.items()], 2 * SHOWN)


def sizes(facts: Facts) -> list[tuple[str, ...]]:
    """Sizes of images, the most frequent first; nothing where all are of one."""
    found = facts.files.sizes if facts.files else {}
    if len(found) < 2:
        return []
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return _cut([(_size(size), f"{count:,}") for size, count in ordered], SIZES_SHOWN)


# --- as a page ----------------------------------------------------------------------------------


def pictures(facts: Facts) -> list[tuple[str, int, int, str | None]]:
    """Of each class its name, training and test examples, and some of its images as a data URI."""
    from datadiet.data.sources.encoded import strip

    if facts.dataset is None:
        return []
    shape, images, labels = facts.dataset.image_shape, facts.dataset.train_images, facts.dataset.train_labels
    drawn = len(shape) == 3 and shape[2] in (1, 3)
    found = []
    for label, (name, train, test) in enumerate(counts(facts.dataset)):
        uri = None
        if drawn and label < CLASSES_SHOWN and train:
            png = strip([images[i] for i in samples(labels, label, IMAGES_SHOWN)], SIDE)
            uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        found.append((name, train, test, uri))
    return found


def html(facts: Facts, timing: Timing | None) -> str:
    """The page, self-contained: no script, no outside request; text of users is text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = printable
    template = environment.from_string(
        files("datadiet.report").joinpath("data_page.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        facts=facts, headline=headline(facts), what=what(facts), doubtful=doubtful(facts), classes=pictures(facts),
        done=done_with_it(facts), costs=costs(facts, timing), command=next_command(facts), sizes=sizes(facts),
        folders=folders(facts), few=_few, version=datadiet.__version__, classes_shown=CLASSES_SHOWN,
    )  # fmt: skip
