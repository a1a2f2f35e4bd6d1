"""A linear world with closed forms, and simulations to check them against.

Needs only numpy; used by the documentation and its tests.
"""
