"""Runs the tasks of a plan in several processes.

Nothing here makes tables or figures.
"""
