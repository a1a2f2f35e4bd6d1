"""Tables, figures and the page of results, from finished cells.

Reads results; runs no model.
"""
