"""What finished cells hold, and the strengths chosen on them.

Reads results; makes and prints none.
"""
