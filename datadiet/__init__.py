"""Deep learning on a data diet: find the training examples that matter, and prove it."""

__version__ = "0.1.0"
