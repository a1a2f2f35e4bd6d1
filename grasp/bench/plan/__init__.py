"""What a benchmark does: its plan, the cells and the tasks in them.

Runs nothing and reads no results.
"""
