"""Measurements of one factor in a model: activations, doses, rows, overlap.

Nothing here chooses a factor or trains a guard.
"""
