"""Parts of pages: shared by several pages, or long enough for a file of their own.

Computes nothing; charts are in `dashboard.figures`.
"""
