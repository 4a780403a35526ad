"""Faults done on purpose, counted: `python -m tests.faults`."""
