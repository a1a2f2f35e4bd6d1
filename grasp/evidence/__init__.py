"""Measurements of one factor in a model: activations, dose–response, driving rows, task overlap.

Nothing here chooses factors or trains with protection.
"""
