"""A model's answers and their scores, including scores by a judge.

Comparing scores is arithmetic, in `analysis.comparison`.
"""
