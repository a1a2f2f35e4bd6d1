"""The results in finished cells, and the strengths chosen from them.

Reads only; nothing here runs a task or prints a table.
"""
