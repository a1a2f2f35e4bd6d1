"""Adapters and data on the Hugging Face Hub, pinned to a commit.

Free of torch; nothing here opens a model.
"""
