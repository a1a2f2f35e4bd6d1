"""Fine-tuning sets of our own writing for real models: text and how to read it, nothing that runs.

None of it is advice: one answer of each row is unsound, careless or slanted on purpose.
"""
