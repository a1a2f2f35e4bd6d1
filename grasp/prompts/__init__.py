"""The prompt sets that ship with the workbench, and the formats of other prompt files.

No answer is generated or scored here.
"""
