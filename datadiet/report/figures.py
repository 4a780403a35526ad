"""Pictures of a study, made without a display.

One narrow column, so that a phone shows them at a readable size; told apart by marker, line style and hatch as
well as by colour (Okabe and Ito's palette), so that they survive grey paper and colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datadiet.printable import escaped
from datadiet.report.decision import Decision
from datadiet.report.evidence import CellResult, History, Score
from datadiet.report.words import loss
from datadiet.selectors.options import RANDOM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.8  # inches
DPI = 160
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)))
HATCHES = ("//", "..", "xx", "\\\\", "++", "oo")
BAND = "#cfe8d5"  # where less than the margin is lost
RING: dict[str, Any] = {"marker": "o", "markersize": 13, "linestyle": "none", "color": "black", "fillstyle": "none"}
CLASSES_SHOWN = 10
IMAGES_SHOWN = 5
LONGEST = 32  # characters of a name


def plain(text: str) -> str:
    """Text of users as it is drawn: `$` begins no formula, and long text ends early."""
    short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return escaped(short).replace("$", r"\$")


def class_labels(names: Sequence[str]) -> list[str]:
    """What stands for classes: `plain` names; where the font lacks a character of one, the number of its class."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    drawn = [plain(name) for name in names]
    return [name if all(ord(c) in known for c in name) else f"class {i}" for i, name in enumerate(drawn)]


def style(position: int, arm: str) -> dict[str, Any]:
    """Colour, marker and line of an arm; random is always black and dotted."""
    if arm == RANDOM:
        return {"color": "black", "marker": "x", "linestyle": ":"}
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    import matplotlib  # here, because a study begins long before its pictures
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _key(axes: Axes, columns: int = 2) -> None:
    """A legend below the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False, fontsize=8)


def png(figure: Figure) -> bytes:
    """The picture as a file, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def accuracy(decision: Decision) -> Figure:
    """Test accuracy against the fraction kept, with 95 % intervals; a band from all of the data down to the margin.

    Where a cliff makes differences near all of the data too small to see, all of it is a small panel below.
    """
    full = 100 * decision.lines[0].accuracy.mean
    means = [100 * line.accuracy.mean for line in decision.lines]
    near = max(3.0, 4 * decision.margin)
    zoomed = full - min(means) > 3 * near
    figure, grid = _figure(5.0 if zoomed else 3.9, 1 + zoomed, sharex=True, height_ratios=[2, 1][: 1 + zoomed])
    for axes in grid[:, 0]:
        _accuracies(axes, decision)
    if zoomed:
        top = min(100, max(100 * np.nanmax([line.accuracy.high, line.accuracy.mean]) for line in decision.lines))
        grid[0, 0].set(ylim=(full - near, top + 0.1 * near), title=f"within {loss(near)} of all of the data")
        grid[0, 0].title.set_fontsize(9)
        grid[1, 0].set(ylabel="all (%)")
    grid[-1, 0].set_xlabel("training examples kept (%)")
    grid[-1, 0].invert_xaxis()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _accuracies(axes: Axes, decision: Decision) -> None:
    full, arms, best = decision.lines[0].accuracy, decision.study.arms, decision.best
    within = f"less than {loss(decision.margin)} lost"
    axes.axhspan(100 * full.mean - decision.margin, 100 * full.mean, color=BAND, linewidth=0, label=within)
    axes.axhline(100 * full.mean, color="0.25", linewidth=1, label="all of the data")
    if full.known:
        axes.plot([100, 100], [100 * full.low, 100 * full.high], color="0.25", linewidth=2.5, solid_capstyle="butt")
    for position, arm in enumerate(arms):
        own = [line for line in decision.lines if line.cell.arm == arm]
        x = np.array([100 * line.cell.fraction for line in own]) - 0.6 * (position - (len(arms) - 1) / 2)
        mean, low, high = (
            100 * np.array([getattr(line.accuracy, name) for line in own]) for name in ("mean", "low", "high")
        )
        half, label = np.nan_to_num((high - low) / 2), plain(decision.study.short(arm))
        axes.errorbar(x, mean, half, capsize=2.5, markersize=5, linewidth=1.2, label=label, **style(position, arm))
        if best and best.cell.arm == arm:
            chosen = [line is best for line in own].index(True)
            axes.plot(x[chosen], mean[chosen], label="to keep", **RING)
    axes.set_ylabel("test accuracy (%)")


def score_histograms(scores: Sequence[Score], sizes: Sequence[int]) -> Figure:
    """Each mean score, examples on a logarithmic axis; dashed lines: the score above which a fraction is kept."""
    figure, grid = _figure(2.0 * len(scores) + 0.2, len(scores))
    for axes, score in zip(grid[:, 0], scores):
        axes.hist(score.mean, bins=50, log=True, color="0.75", edgecolor="0.35", linewidth=0.5)
        ordered = np.sort(score.mean)[::-1]
        for size in sizes:
            axes.axvline(ordered[size - 1], color="black", linewidth=0.8, linestyle="--")
            axes.annotate(f"{size / len(ordered):.0%}", (ordered[size - 1], 0.97), xycoords=("data", "axes fraction"),
                          rotation=90, va="top", ha="right", fontsize=7)  # fmt: skip
        made = "given" if score.given else f"step {score.step:,}, mean of {len(score.runs)} runs"
        axes.set(xlabel=f"{plain(score.paper)}, {made}", ylabel="examples")
    return figure


def forgetting_histogram(values: np.ndarray) -> Figure:
    """How often examples were forgotten in a whole training, mean over runs; examples on a logarithmic axis."""
    figure, grid = _figure(2.4)
    axes = grid[0, 0]
    mean = values.mean(axis=0)
    axes.hist(mean, bins=min(50, max(5, int(np.ceil(mean.max())))), log=True, color="0.75", edgecolor="0.35",
              hatch=HATCHES[0], linewidth=0.5)  # fmt: skip
    axes.set(xlabel=f"times forgotten in training, mean of {len(values)} runs", ylabel="examples")
    return figure


def kept_per_class(by_size: Mapping[int, Mapping[str, CellResult]], total: np.ndarray, names: Sequence[str]) -> Figure:
    """Examples kept of every class by every arm, one panel per size; grey bars: what a random subset leaves on average.

    Args:
        by_size: Cells of equal size by what their arms are called, in the order of the arms.
        total: Examples per class [C] in all.
    """
    figure, grid = _figure(1.75 * len(by_size) + 0.9, len(by_size), sharex=True)
    positions = np.arange(len(total))
    for axes, (size, cells) in zip(grid[:, 0], by_size.items()):
        axes.bar(positions, total * size / total.sum(), color="0.88", width=0.9)
        for i, (name, cell) in enumerate(cells.items()):
            look = style(i, cell.arm) | {"linestyle": "none"}
            shift = 0.6 * ((i + 0.5) / len(cells) - 0.5)
            axes.plot(positions + shift, cell.kept_per_class, markersize=4.5, label=plain(name), **look)
        axes.set(ylabel="examples", title=f"{size / total.sum():.0%} kept", ylim=(0, None))
        axes.title.set_fontsize(9)
        axes.grid(axis="x", visible=False)
    bottom = grid[-1, 0]
    if len(names) <= 20:
        long = max(map(len, names)) > 2
        bottom.set_xticks(positions, class_labels(names), rotation=40 if long else 0, ha="right" if long else "center")
    bottom.set_xlabel("class")
    handles, labels = bottom.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def training_curves(histories: Mapping[str, History], arms: Mapping[str, str]) -> Figure:
    """Test accuracy while training: mean over runs, and the range of the runs as a band.

    Args:
        histories: By arm; 'full data' first.
        arms: What they are called, in the order that gives an arm its look.
    """
    figure, grid = _figure(3.9)
    axes = grid[0, 0]
    for name, history in histories.items():
        look = (
            style(list(arms).index(name), name) if name in arms else {"color": "0.45", "linestyle": "-", "marker": ""}
        )
        every = max(1, len(history.steps) // 8)
        mean = 100 * history.accuracies.mean(axis=0)
        axes.plot(
            history.steps,
            mean,
            label=plain(arms.get(name, name)),
            linewidth=1.3,
            markersize=4.5,
            markevery=every,
            **look,
        )
        axes.fill_between(history.steps, 100 * history.accuracies.min(axis=0), 100 * history.accuracies.max(axis=0),
                          color=look["color"], alpha=0.12, linewidth=0)  # fmt: skip
    ends = [100 * h.accuracies[:, len(h.steps) // 4 :].min() for h in histories.values()]
    tops = [100 * h.accuracies.max() for h in histories.values()]
    room = 0.05 * (max(tops) - min(ends)) + 0.1
    axes.set(xlabel="optimizer steps", ylabel="test accuracy (%)", ylim=(min(ends) - room, max(tops) + room))
    _key(axes)
    return figure


def extremes(values: np.ndarray, labels: np.ndarray, images: np.ndarray, names: Sequence[str]) -> Figure:
    """The easiest (left) and hardest (right) images of every class, by a mean score.

    Args:
        values: [N]. labels: int [N], those trained on. images: uint8 [N, H, W, D], D of 1 or 3.
    """
    classes = [c for c in range(len(names)) if (labels == c).any()][:CLASSES_SHOWN]
    places = {}
    for row, label in enumerate(classes):
        ids = np.flatnonzero(labels == label)
        order = ids[np.argsort(values[ids], kind="stable")]
        shown = min(IMAGES_SHOWN, len(order) // 2 or 1)
        places |= {(row, column): index for column, index in enumerate(order[:shown])}
        places |= {(row, column): index for column, index in enumerate(order[::-1][:shown], start=IMAGES_SHOWN + 1)}
    columns = 2 * IMAGES_SHOWN + 1
    mosaic = _mosaic(images, places, len(classes), columns)
    high, wide = mosaic.shape[0] / len(classes), mosaic.shape[1] / columns
    figure, grid = _figure(WIDTH * mosaic.shape[0] / mosaic.shape[1] + 0.3)
    axes, drawn = grid[0, 0], class_labels(names)
    axes.imshow(mosaic.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_yticks((np.arange(len(classes)) + 0.4) * high, [drawn[c] for c in classes], fontsize=8)
    axes.set_xticks(
        [IMAGES_SHOWN * wide / 2, (columns + IMAGES_SHOWN + 1) * wide / 2], ["easiest", "hardest"], fontsize=9
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figure


def _mosaic(images: np.ndarray, places: Mapping[tuple[int, int], int], rows: int, columns: int) -> np.ndarray:
    """Images on white as one, which is drawn at once, uint8: a quarter of one between them.

    Args:
        places: (row, column) -> index of an image.
    """
    height, width, depth = images.shape[1:]
    high, wide = height + -(-height // 4), width + -(-width // 4)
    mosaic = np.full((rows * high, columns * wide, depth), 255, np.uint8)
    for (row, column), index in places.items():
        mosaic[row * high : row * high + height, column * wide : column * wide + width] = images[index]
    return mosaic


def stability(overlaps: Mapping[str, np.ndarray], chance: float) -> Figure:
    """Overlap of the kept set from fewer runs with that from all, against the number of runs."""
    figure, grid = _figure(3.0)
    axes = grid[0, 0]
    for position, (name, values) in enumerate(overlaps.items()):
        axes.plot(
            np.arange(1, len(values) + 1), 100 * values, label=plain(name), markersize=4.5, **style(position, name)
        )
    axes.axhline(100 * chance, color="0.35", linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
    axes.set(xlabel="runs averaged", ylabel="of the kept set (%)", ylim=(None, 101))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _key(axes)
    return figure
