"""The tables, figures and page of results, from finished cells.

Nothing here runs a model.
"""
