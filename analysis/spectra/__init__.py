"""Singular values and subspaces of single modules' updates, and tables of them.

What several modules share is in `analysis.factors`.
"""
