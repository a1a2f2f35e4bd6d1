"""Selection and caches: the one home of widget keys, URL parameters and cached data.

Draws nothing.
"""
