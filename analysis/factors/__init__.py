"""Directions shared by many modules: finding, ranking, matching and testing them.

Arithmetic on updates and saved effects only; `grasp.identification` runs the model.
"""
