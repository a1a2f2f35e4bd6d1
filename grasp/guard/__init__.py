"""GRASP and its rivals while a model trains: what is held, and how.

Knows of no run, folder or prompt set.
"""
