"""What a benchmark does: its plan, the plan's cells, and the tasks in each cell.

Nothing here runs a task or reads a result.
"""
