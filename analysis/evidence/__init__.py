"""What saved measurements say about one factor.

Reads what `grasp.evidence` wrote; comparing runs is the task of `analysis.comparison`.
"""
