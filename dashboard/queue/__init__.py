"""Commands that pages queue, the worker that runs them, and the runs they make.

Draws nothing and runs no model.
"""
