"""Opening a model, its residual stream, and hooks on it.

Knows of no task, method or run.
"""
