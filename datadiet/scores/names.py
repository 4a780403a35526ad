"""What scores are called for readers: in plain words, and in the literature. One line for each in NAMES."""

from __future__ import annotations

from typing import NamedTuple


class Called(NamedTuple):
    """Names of a score; commands and files have its type, which is its key in a registry."""

    plain: str  # for readers who know no paper; it follows "largest" and "smallest"
    paper: str

    def at(self, when: str, more: str = "") -> str:
        """'error vector length early in training (EL2N)'; a score without names of its own has no paper's.

        Args:
            when: Of training, with a space before it; or nothing.
            more: Stands behind the paper's name.
        """
        known = "" if self.paper == self.plain else self.paper
        behind = ", ".join(part for part in (known, more) if part)
        return f"{self.plain}{when}" + (f" ({behind})" if behind else "")


NAMES: dict[str, Called] = {
    "l2_error": Called("error vector length", "EL2N"),
    "l1_error": Called("sum of absolute errors", "L1 error"),
    "max_margin": Called("lead of the best wrong class", "max margin"),
    "sum_margin": Called("lead of all wrong classes", "sum margin"),
    "entropy": Called("indecision among all classes", "entropy"),
    "least_confidence": Called("doubt about the best class", "least confidence"),
    "margin": Called("closeness of the two best classes", "margin"),
    "loss": Called("loss", "cross-entropy"),
    "grad_norm": Called("gradient length", "GraNd"),
    "grand_last": Called("gradient length of the last layer", "last-layer GraNd"),
    "input_norm": Called("size of the input", "input norm"),
    "prototype": Called("distance from typical examples", "prototypes"),
    "forget": Called("number of times forgotten", "forgetting"),
    "first_learned": Called("epoch of the first right answer", "first learned"),
    "aum": Called("mean lead of the best wrong class", "AUM"),
    "aum_prob": Called("mean lead of the best wrong class in probability", "AUM of p"),
    "confidence": Called("mean doubt about the label", "confidence"),
    "variability": Called("unsteadiness of belief in the label", "variability"),
    "correctness": Called("share of wrong answers", "correctness"),
    "dyn_unc": Called("unsteadiness from epoch to epoch", "Dyn-Unc"),
    "dual": Called("unsteadiness and difficulty together", "DUAL"),
    "tdds": Called("unevenness of learning", "TDDS"),
    "el2n_epochs": Called("mean error vector length", "EL2N of all epochs"),
}


def names_of(kind: str) -> Called:
    """Names of a score by its type; one that NAMES does not have is called by that, '_' as spaces."""
    plain = kind.replace("_", " ")
    return NAMES.get(kind, Called(plain, plain))
