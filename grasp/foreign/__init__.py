"""What was made elsewhere: settings, pickles and directions of other tools.

Reads and refuses; trains and evaluates nothing.
"""
