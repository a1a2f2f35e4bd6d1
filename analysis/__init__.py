"""Arithmetic on saved arrays and tables, and the records of a workspace; never runs a model."""

__version__ = "0.1.0"
"""Of the whole distribution: pyproject.toml and `grasp.__version__` read it here."""
