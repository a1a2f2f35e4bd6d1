"""Parts of pages that more than one page shows, or that are long enough for a file.

Computes nothing; charts are in `dashboard.figures`.
"""
