"""Find candidate factors and measure their effects in a model.

Ranking and naming factors is arithmetic, in `analysis.factors`.
"""
