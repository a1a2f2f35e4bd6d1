"""A linear world with closed forms, and simulations that are held against them.

numpy only; used by the documentation and its tests.
"""
