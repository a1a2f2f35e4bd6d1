"""Adapters and data on the Hugging Face Hub, pinned to a commit; packaged models, to a hash.

Free of torch; nothing here opens a model.
"""
