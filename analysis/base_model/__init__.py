"""What can be known of a base model from its files alone.

No weights are multiplied into activations, and no model is run.
"""
