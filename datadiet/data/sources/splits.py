"""Which examples are trained on and which tested on, and what classes of theirs are the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from unicodedata import normalize

import numpy as np

from datadiet import commands
from datadiet.data.cache import taken
from datadiet.data.dataset import Splits
from datadiet.data.reading import Reading, remark
from datadiet.data.sources.base import Obstacles
from datadiet.errors import UserError
from datadiet.printable import visible

TRAIN = ("train", "training")  # names of splits, whatever their case
TEST = ("test", "testing", "val", "valid", "validation", "eval")  # the first that has labels is the test set
WORD = re.compile(rf"(?<![a-z])({'|'.join((*TRAIN, *TEST))})(?:set)?(?![a-z])")  # such a name within a longer one
FRACTION = 0.2  # that is advised
MANY = 10  # examples of a class whose part that is tested on can be near the fraction
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def named(there: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Those splits that have one of these names, in the order of these."""
    names = list(there)
    return [name for one in wanted for name in names if name.lower() == one]


def meant(there: Iterable[str]) -> dict[str, str]:
    """Folders by the splits that their names mean: as they are called, or where none is called as a split, and one has
    the word of a training set and others those of test sets in its name, by these: 'seg_train', 'test-images'."""
    names = list(there)
    words = {name: found[0] for name in names if len(found := WORD.findall(name.lower())) == 1}
    by_word = {word: name for name, word in words.items()}
    if (
        named(names, (*TRAIN, *TEST)) or len(by_word) < len(words)
        or len(named(by_word, TRAIN)) != 1 or not named(by_word, TEST)
    ):  # fmt: skip
        return {name: name for name in names}
    return by_word


def choose(
    obstacles: Obstacles, there: Mapping[str, bool], reading: Reading, expected: str, train: str | None = None
) -> tuple[str | None, str | None]:
    """Which splits are trained and tested on.

    Args:
        obstacles: Told where there are none, or several that may be meant.
        there: Names of the splits, and whether their examples have labels.
        expected: What there should be, in words.
        train: The split that is trained on, where no name of it is known.
    Returns:
        Training and test split. Without a test split, a fraction of the training split is tested on; without either,
        there is nothing to read.
    """
    trains = named(there, TRAIN) if train is None else [train]
    tests = named(there, TEST)
    if len(trains) > 1:
        obstacles.add(f"{', '.join(trains + tests)} may each be meant; {expected}, each once")
        return None, None
    if not trains:
        return None, None
    if reading.test_split is not None:
        return trains[0], _picked(obstacles, there, trains[0], reading.test_split)
    labelled = [name for name in tests if there[name]]
    unlabelled = [name for name in tests if not there[name]]
    if reading.test_fraction is not None and labelled:
        obstacles.add(
            f"test_fraction={reading.test_fraction:g}, but {labelled[0]} is a test set; which of them is meant? Leave "
            f"out test_fraction to test on {labelled[0]}"
        )
    elif len({name.lower() for name in labelled[:2]}) < len(labelled[:2]):
        obstacles.add(f"{', '.join(trains + tests)} may each be meant; {expected}, each once")
    elif labelled:
        _tell(obstacles.name, labelled[0], labelled[1:], unlabelled)
        return trains[0], labelled[0]
    elif reading.test_fraction is None:
        _tell_of_none(obstacles, there, trains[0], unlabelled, expected)
    elif unlabelled:
        remark(f"{obstacles.name}: {', '.join(unlabelled)} has no labels and is not used.")
    return trains[0], None


def _picked(obstacles: Obstacles, there: Mapping[str, bool], train: str, wanted: str) -> str | None:
    """The split of a name, whatever its case where that tells it."""
    found = [name for name in there if name == wanted] or [name for name in there if name.lower() == wanted.lower()]
    others = [visible(name) for name in there if name != train]
    if len(found) != 1 or found[0] == train:
        obstacles.add(f"test_split={wanted}; expected a split to test on: {', '.join(others) or 'there is none'}")
    elif not there[found[0]]:
        obstacles.add(f"test_split={wanted}, but {found[0]} has no labels of the classes of {train}")
    else:
        return found[0]
    return None


def _tell(name: str, test: str, others: Sequence[str], unlabelled: Sequence[str]) -> None:
    if test.lower() not in TEST[:2] or others or unlabelled:
        unused = f"; {', '.join(others)} is not used" if others else ""
        without = f"; {', '.join(unlabelled)} has no labels" if unlabelled else ""
        remark(f"{name}: {test} is the test set{unused}{without}.")


def _tell_of_none(
    obstacles: Obstacles, there: Mapping[str, bool], train: str, unlabelled: Sequence[str], expected: str
) -> None:
    others = [name for name in there if name not in (train, *unlabelled) and there[name]]
    picking = f". To test on {others[0]}: {commands.option('test_split', others[0])}" if others else ""
    why = f"no test split: {expected}" if not unlabelled else f"{', '.join(unlabelled)} has no labels: {expected}"
    obstacles.add(f"{why}{picking}", test_fraction=FRACTION)


# --- a fraction of the examples ------------------------------------------------------------------


def divide(name: str, ids: Sequence[str] | np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which examples are the test set, bool [N]: those whose ids have a hash in the lowest `fraction`.

    So examples that are added, removed or put in another order move none of the others. In each class of two or more,
    at least one is tested on and one trained on: the lowest and the highest hash, whatever the fraction.

    Args:
        ids: Names [N], which differ.
        labels: [N].
    """
    places = np.array([_place(str(one)) for one in ids])
    test = places < fraction
    if not len(test):
        return test
    order = np.lexsort((places, labels))
    starts = np.unique(labels[order], return_index=True)[1]
    ends = np.append(starts[1:], len(order)) - 1
    test[order[starts]] = True
    test[order[ends]] = False  # at last: of one example nothing can be tested
    alone = int((starts == ends).sum())
    without = f" {alone} classes of one example have none." if alone else ""
    remark(
        f"{name}: {test.sum():,} of {len(test):,} examples are the test set (test_fraction={fraction:g} of each class, "
        f"by a hash of their names).{without}"
    )
    _tell_uneven(name, fraction, np.add.reduceat(test, starts, dtype=int), ends + 1 - starts)
    return test


def _tell_uneven(name: str, fraction: float, tested: np.ndarray, sizes: np.ndarray) -> None:
    """Say where of classes of MANY examples or more far fewer or more are tested on than was asked for, as it may be
    where names are numbered in steps of Fibonacci numbers."""
    wanted, many = fraction * sizes, sizes >= MANY
    if uneven := int((many & ((tested < wanted / 2) | (tested > np.maximum(1, 2 * wanted)))).sum()):
        share = 100 * (tested / sizes)[many]
        remark(
            f"{name}: in {uneven} of {len(sizes)} classes less than half or more than twice of test_fraction is tested "
            f"on ({share.min():.2g} to {share.max():.2g} % of a class), as their names have it. Tell which yourself: "
            "by folders, or a column split of a csv."
        )


def _place(text: str) -> float:
    """Of a text among all, in [0, 1): the same in every spelling of Unicode, and on every machine.

    Names that differ only in their last number are spread evenly: each takes its place at a distance of the golden
    ratio from the one before. So of numbered images of a class, however few, about the fraction is taken that is asked.
    """
    parts = re.fullmatch(r"(?s)(.*?)([0-9]{0,18})([^0-9]*)", normalize("NFC", text))
    assert parts, "each part may be empty"
    head, number, tail = parts.groups()
    digest = hashlib.sha256(f"{head}\0{tail}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) + int(number or 0) * GOLDEN) % 2**64 / 2**64


def parted(
    name: str, images: np.ndarray, labels: np.ndarray, ids: np.ndarray, test: np.ndarray, class_names: Sequence[str],
    skipped: Sequence[str] = (),
) -> Splits:  # fmt: skip
    """Training and test set out of arrays of both.

    Args:
        test: bool [N]: which are of the test set.
        skipped: Names of those that were left out.
    Raises:
        UserError: a class has lost all its training examples with these.
    """
    count = int((~test).sum())
    apart = not test[:count].any()  # where no copy is needed
    both = [slice(count), slice(count, None)] if apart else [~test, test]
    (y, y_test), (names, test_names) = ([array[part] for part in both] for array in (labels, ids))
    x, x_test = (images[part] if apart else taken(f"{name}: images", images, part) for part in both)
    if skipped and (lost := np.setdiff1d([*range(len(class_names)), *y_test], y)).size:
        which = class_names[lost[0]] if class_names else lost[0]
        raise UserError(
            f"{name}: no image of class {which} is left to train on: {len(skipped)} cannot be read, the first is "
            f"{skipped[0]}."
        )
    return Splits(x, y, x_test, y_test, names, tuple(class_names), test_names, tuple(skipped))


# --- classes --------------------------------------------------------------------------------------


def spelled_alike(name: str, train: Iterable[str], test: Iterable[str]) -> dict[str, str]:
    """The class that each name of one stands for: names that Unicode spells in two ways (é as one character, or as e
    and an accent, as macOS has it) are one class, called as the first of them in the training set. It is said."""
    first: dict[str, str] = {}
    for one in (*sorted(set(train)), *sorted(set(test))):
        first.setdefault(normalize("NFC", one), one)
    found = {one: first[normalize("NFC", one)] for one in {*train, *test}}
    several = sorted({same for one, same in found.items() if one != same})
    if several:
        shown = ", ".join(map(visible, several[:10]))
        remark(f"{name}: names of classes in two spellings of Unicode are taken for one: {shown}.")
    return found


def tell_numbers(name: str, class_names: Sequence[str]) -> None:
    """Say which labels classes have whose names are other numbers."""
    if all(one.isdecimal() for one in class_names) and [int(one) for one in class_names] != [*range(len(class_names))]:
        shown = ", ".join(f"{one} is {label}" for label, one in enumerate(class_names[:12]))
        more = " …" if len(class_names) > 12 else ""
        remark(f"{name}: names of classes are numbers, in the order of texts; as labels: {shown}{more}.")
