"""Deep learning on a data diet: find the training examples that matter, and prove it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names for type checkers, which do not call __getattr__
    __version__: str

    from datadiet.config import TrainConfig
    from datadiet.data.dataset import Dataset
    from datadiet.data.labels import randomize_labels
    from datadiet.data.objects import dataset_from
    from datadiet.data.registry import load_dataset
    from datadiet.errors import UserError
    from datadiet.models.networks import Network
    from datadiet.models.registry import build_model
    from datadiet.report.comparison import compare
    from datadiet.report.frames import Study
    from datadiet.report.verdicts import decide
    from datadiet.runs.unrecorded import train
    from datadiet.scores.checkpoint import compute_scores
    from datadiet.scores.forgetting import forgetting_scores
    from datadiet.scores.outputs import scores_from_logits
    from datadiet.scores.recorder import Recorder
    from datadiet.selectors.selection import select
    from datadiet.selectors.window_search import window_search
    from datadiet.study.program import study
    from datadiet.tracking.fetch import open_run

# Public names and their modules; imported when first used, so that `import datadiet` is quick.
_MODULES = {
    "Dataset": "data.dataset",
    "Network": "models.networks",
    "Recorder": "scores.recorder",
    "Study": "report.frames",
    "TrainConfig": "config",
    "UserError": "errors",
    "build_model": "models.registry",
    "compare": "report.comparison",
    "compute_scores": "scores.checkpoint",
    "dataset_from": "data.objects",
    "decide": "report.verdicts",
    "forgetting_scores": "scores.forgetting",
    "load_dataset": "data.registry",
    "open_run": "tracking.fetch",
    "randomize_labels": "data.labels",
    "scores_from_logits": "scores.outputs",
    "select": "selectors.selection",
    "study": "study.program",
    "train": "runs.unrecorded",
    "window_search": "selectors.window_search",
}
__all__ = [
    "Dataset",
    "Network",
    "Recorder",
    "Study",
    "TrainConfig",
    "UserError",
    "__version__",
    "build_model",
    "compare",
    "compute_scores",
    "dataset_from",
    "decide",
    "forgetting_scores",
    "load_dataset",
    "open_run",
    "randomize_labels",
    "scores_from_logits",
    "select",
    "study",
    "train",
    "window_search",
]


def _find(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module 'datadiet' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(import_module(f"datadiet.{_MODULES[name]}"), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow

    try:
        return version("datadiet")
    except PackageNotFoundError:  # a checkout that nobody installed, as in an environment of conda.yaml
        return "0+unknown"


if not TYPE_CHECKING:  # a checker that saw it would take any name for an existing one
    __getattr__ = _find


def __dir__() -> list[str]:
    return sorted(__all__)
