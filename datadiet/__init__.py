"""Deep learning on a data diet: find the training examples that matter, and prove it."""

from importlib import import_module

__version__ = "0.1.0"

# Public names and their modules; imported when first used, so that `import datadiet` is quick.
_PUBLIC = {
    "Dataset": "data",
    "load_dataset": "data",
    "randomize_labels": "data",
    "Network": "models",
    "build_model": "models",
    "compute_scores": "scores",
    "select": "selection",
    "window_search": "search",
    "forgetting_scores": "forgetting",
    "open_run": "stored_runs",
    "TrainConfig": "config",
    "UserError": "config",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'datadiet' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    return getattr(import_module(f"datadiet.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
