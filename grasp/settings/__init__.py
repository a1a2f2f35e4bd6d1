"""Settings of runs, models, methods and judges, and their checks.

Free of torch, and of anything that opens a model.
"""
