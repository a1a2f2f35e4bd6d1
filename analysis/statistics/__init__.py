"""Intervals, resampling and paired tests.

Arrays only; nothing here knows of runs or prompts.
"""
