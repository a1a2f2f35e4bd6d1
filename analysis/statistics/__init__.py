"""Intervals, resampling and paired tests.

Arrays only; nothing here knows about runs or prompts.
"""
