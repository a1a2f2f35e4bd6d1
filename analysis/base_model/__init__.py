"""What the files of a base model say: its unembedding, its tensor shapes, the memory it takes.

Nothing here runs a model or computes activations.
"""
