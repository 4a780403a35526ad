"""Scores gathered in a training loop of one's own, by NumPy alone: `dd.Recorder`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from datadiet.config import find_option
from datadiet.errors import UserError
from datadiet.option import Parameters
from datadiet.scores import recorded
from datadiet.scores.outputs import logits_from, numbers_from
from datadiet.scores.recorded import About
from datadiet.scores.trajectory import TRAJECTORIES, Batch, Moments, Shape, Sum, expand, option_names


class Told(Batch):
    """A batch of NumPy: what several scores look at is computed once."""

    @cached_property
    def probabilities(self) -> Any:
        return super().probabilities

    @cached_property
    def correct(self) -> Any:
        return super().correct

    @cached_property
    def true_probability(self) -> Any:
        return super().true_probability


class Recorder:
    """Scores gathered while training, from what a loop knows of each batch, as `trajectory=` gathers them.

    Larger is harder or more informative. Not for several threads at once. It can be pickled, as for
    `torch.distributed.all_gather_object`.
    """

    def __init__(
        self, num_examples: int, num_classes: int, scores: str | Iterable[str] = ("forget",), **options: Any
    ) -> None:
        """Nothing presented yet.

        Args:
            num_examples: N; ids are 0 to N - 1, positions in the whole training set.
            num_classes: C, at least 2.
            scores: Names in TRAJECTORIES, or 'all'.
            **options: Of these scores, as `trajectory_window` (10) and `tdds_decay` (0.9).
        Raises:
            UserError: an unknown score or option, or a value that cannot be.
        """
        for name, count, least in (("num_examples", num_examples, 1), ("num_classes", num_classes, 2)):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
                raise UserError(f"{name}={count!r}: expected a whole number of at least {least}.")
        names = _expanded(scores)
        self._about = About(int(num_examples), int(num_classes), names, _values(names, options))
        self._given = Parameters.of(self._about.options)
        self._stats = {name: self._start(name) for name in names}
        self._presentations = np.zeros(num_examples, np.int32)
        # What it began with, which it has in common with those that it can be merged with.
        self._before, self._begun = self._presentations.copy(), ""
        self._parts, self._merged = {secrets.token_hex(8)}, False

    def __repr__(self) -> str:
        return f"Recorder({self._about}; {int(self._presentations.sum())} presentations)"

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what is gathered."""
        return self._about.scores

    @property
    def presentations(self) -> np.ndarray:
        """How often each example was told, int32 [N]."""
        return self._presentations.copy()

    def _start(self, name: str) -> Any:
        entry = TRAJECTORIES[name]
        stats = entry.start(Shape(self._about.num_examples, self._about.num_classes), *entry.own(self._given))
        return type(stats)(*(np.array(leaf, order="C") for leaf in stats))

    def update(self, ids: Any, logits: Any, labels: Any) -> None:
        """Tell a batch, before its optimizer step: what the training forward pass gave.

        Args:
            ids: Its examples, whole numbers [B], each at most once in a batch.
            logits: [B, C], before softmax; arrays, or tensors on any device. They are gathered as float32.
            labels: [B], those trained on.
        Raises:
            UserError: wrong shapes, numbers that cannot be, one id twice, logits that are not finite. Nothing of the
                batch counts then.
        """
        outputs = logits_from(logits, self._about.num_classes)
        rows = numbers_from("ids", ids, len(outputs), self._about.num_examples)
        classes = numbers_from("labels", labels, len(outputs), self._about.num_classes)
        ordered = np.sort(rows)
        if len(twice := ordered[1:][ordered[1:] == ordered[:-1]]):
            raise UserError(f"ids: {twice[0]} is twice in this batch; expected each example at most once.")
        if len(rows):
            self._tell(Told(rows, classes, outputs))

    def _tell(self, batch: Any) -> None:
        if self._merged:
            self._begin_anew()
        updated = {}
        for name, stats in self._stats.items():
            entry, seen = TRAJECTORIES[name], type(stats)(*(leaf[batch.ids] for leaf in stats))
            updated[name] = entry.update(seen, batch, *entry.own(self._given))
        for name, stats in self._stats.items():
            for leaf, rows in zip(stats, updated[name]):
                leaf[batch.ids] = rows
        self._presentations[batch.ids] += 1

    def _begin_anew(self) -> None:
        """What was merged is what comes next begins with, here as in every process that merged the same."""
        digest = hashlib.sha256(self._presentations.data)
        for stats in self._stats.values():
            for leaf in stats:
                digest.update(leaf.data)
        self._before, self._begun = self._presentations.copy(), digest.hexdigest()
        self._parts, self._merged = {secrets.token_hex(8)}, False

    def values(self, name: str, member: Any = None) -> np.ndarray:
        """One score so far, as a training's score file has it after the same batches.

        Args:
            name: One of `scores`.
            member: bool [N], the examples trained on; None: those presented so far.
        Returns:
            float32 [N]; NaN where an example is no member, or was not presented as often as the score needs.
        """
        self._expect(name)
        known = self._presentations > 0 if member is None else np.asarray(member)
        if known.shape != self._presentations.shape or known.dtype != bool:
            raise UserError(
                f"member is {known.dtype} {list(known.shape)}; expected bool [{self._about.num_examples}]: which "
                "examples are trained on."
            )
        return TRAJECTORIES[name].values(self._stats[name], known)

    def _expect(self, name: str) -> None:
        if name not in self._stats:
            raise UserError(f"score {name!r} is not gathered here; there are {', '.join(self._stats)}.")

    # --- several processes ----------------------------------------------------------------------

    def merge(self, other: Recorder) -> Self:
        """Take in what another process recorded at the same time, of other batches of the same epochs.

        Both must have begun with the same: with nothing, or with one merged state. An example told to one of them since
        then is taken over as it is, whatever the score, so that values are those of one process. An example told to
        both has no known order of presentations: only means (aum, aum_prob, confidence, correctness, el2n_epochs) and
        variability can be joined, from nothing on, but for rounding. So where a sampler deals examples out anew in
        every epoch, merge after every epoch, in each process all the others.

        Returns:
            This recorder.
        Raises:
            UserError: it gathers something else, began with something else, was taken in before, or an example was told
                to both and a score needs the order. This recorder is as it was.
        """
        if not isinstance(other, Recorder):
            raise UserError(f"merge: got {type(other).__name__}; expected a Recorder.")
        if self._about != other._about:
            raise UserError(f"merge: this recorder has {self._about}, the other {other._about}; expected the same.")
        if self._parts & other._parts:
            raise UserError("merge: what the other recorded is in this one already; expected each part once.")
        if self._begun != other._begun:
            raise UserError(
                "merge: the two began with different states. Expected that both began with nothing, or with the state "
                "of one merge, as when each process merges all the others after every epoch."
            )
        mine, theirs = (one._presentations > one._before for one in (self, other))
        both = np.flatnonzero(mine & theirs)
        joined = {name: self._joined(name, other, both) for name in self._stats} if len(both) else {}
        for name, stats in self._stats.items():
            for leaf, more in zip(stats, other._stats[name]):
                leaf[theirs & ~mine] = more[theirs & ~mine]
            for leaf, rows in zip(stats, joined.get(name, ())):
                leaf[both] = rows
        self._presentations += other._presentations - other._before
        self._parts, self._merged = self._parts | other._parts, True
        return self

    def _joined(self, name: str, other: Recorder, both: np.ndarray) -> Any:
        """Rows of examples that were told to both."""
        stats, join = self._stats[name], JOINED.get(type(self._stats[name]))
        if join is None or self._before[both].any():
            why = f"{name} needs the order" if join is None else "means are joined from nothing on only"
            raise UserError(
                f"merge: {len(both)} examples were told to both, as example {both[0]}, and {why}. Merge after every "
                "epoch, in each process all the others, with a sampler that gives an example to one process (in torch: "
                "DistributedSampler with drop_last=True); or tell all batches to one recorder."
            )
        pair = ([leaf[both] for leaf in one._stats[name]] for one in (self, other))
        return join(*(type(stats)(*leaves) for leaves in pair))

    # --- files ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write all of it to one file in a folder, which is made if there is none; whole or not at all.

        An earlier state of such a recorder there is replaced. Each process has a folder of its own.

        Returns:
            The file.
        Raises:
            UserError: it cannot be written, or another recorder's file is there.
        """
        arrays = {"presentations": self._presentations, "before": self._before}
        arrays |= {f"{name}/{part}": leaf for name, s in self._stats.items() for part, leaf in s._asdict().items()}
        more = {"begun": self._begun, "parts": sorted(self._parts), "merged": self._merged}
        return recorded.write(Path(folder), self._about, more, arrays)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A recorder as `save` left it in a folder, to go on with.

        Raises:
            UserError: there is none, it is damaged, of a newer version, or of a score that is not known here.
        """
        path, about, more, arrays = recorded.read(Path(folder))
        found = cls(about.num_examples, about.num_classes, about.scores, **about.options)
        wanted = {"presentations": found._presentations, "before": found._before}
        wanted |= {f"{name}/{part}": leaf for name, s in found._stats.items() for part, leaf in s._asdict().items()}
        recorded.check(path, arrays, wanted)
        for name, array in wanted.items():
            array[...] = arrays[name]
        found._begun, found._parts, found._merged = more["begun"], set(more["parts"]), more["merged"]
        return found


def _expanded(scores: str | Iterable[str]) -> tuple[str, ...]:
    """Names in the order of TRAJECTORIES; raises UserError for one that is not there, or none at all."""
    asked = [scores] if isinstance(scores, str) else list(scores)
    if unknown := [name for name in asked if name not in (*TRAJECTORIES, "all")]:
        raise UserError(f"scores: {unknown[0]!r} is none; expected some of {', '.join(TRAJECTORIES)}, or all.")
    if not asked:
        raise UserError(f"scores: none is named; expected some of {', '.join(TRAJECTORIES)}, or all.")
    return expand(asked)


def _values(names: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """A value for every option of these scores; raises UserError for one that they do not have, or that cannot be."""
    own = [option for option in option_names() if any(option in TRAJECTORIES[name].options for name in names)]
    for name in given:
        if name not in own:
            raise UserError(f"{name} is no option of {', '.join(names)}; expected {' or '.join(own) or 'none'}.")
    known = {name: find_option(name) for name in own}
    values = {name: option.default if given.get(name) is None else given[name] for name, option in known.items()}
    for name, option in known.items():
        option.check(values[name])
        if option.type is int and not isinstance(values[name], int | np.integer):
            raise UserError(f"{name}={values[name]!r}: expected {option.expected}.")
    return {name: known[name].type(value) for name, value in values.items()}


# --- examples that two processes were told of ---------------------------------------------------


def _join_sums(one: Sum, other: Sum) -> Sum:
    return Sum(one.presentations + other.presentations, one.total + other.total)


def _join_moments(one: Moments, other: Moments) -> Moments:
    """Source: Chan et al. 1979."""
    count, apart = one.presentations + other.presentations, other.mean - one.mean
    share = other.presentations / count
    squares = one.squares + other.squares + apart**2 * one.presentations * share
    return Moments(count, one.mean + apart * share, squares)


JOINED: dict[type, Callable[[Any, Any], Any]] = {Sum: _join_sums, Moments: _join_moments}  # where order does not matter
