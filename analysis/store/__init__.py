"""The files, records and database of a workspace.

Reads and writes only; nothing is computed here.
"""
