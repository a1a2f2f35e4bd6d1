"""What is selected, and what is cached: the one home of keys and of caches.

Draws nothing.
"""
