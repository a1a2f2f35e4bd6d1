"""What saved measurements say about one factor.

Reads what `grasp.evidence` wrote; compares no runs.
"""
