"""How candidate factors are measured in a model.

How they are ranked and named is in `analysis.factors`.
"""
