"""Directions that many modules share: how they are found, ranked, matched and tested.

Arithmetic on updates and saved effects; what runs a model is in `grasp.identification`.
"""
