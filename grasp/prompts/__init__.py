"""The prompt sets that ship, and the files that hold others.

No answer is generated or scored here.
"""
