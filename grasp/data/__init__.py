"""Data files, chats, and the token ids that are trained on.

Knows of no method; the guard reads the masks that are made here.
"""
