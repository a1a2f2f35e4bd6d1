"""Arithmetic on saved arrays and tables, and the records of a workspace; never runs a model."""
