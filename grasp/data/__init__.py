"""Data files, chats, and the token ids that are trained on.

Knows no method; the guard reads the masks made here.
"""
