"""Answers of a model and their scores, judges included.

How scores are compared is in `analysis.comparison`.
"""
