"""Runs the tasks of a plan over processes.

Nothing here is a table or a figure.
"""
