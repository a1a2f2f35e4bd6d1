"""Everything that runs a model, and the jobs that do so."""

__version__ = "0.1.0"
