"""Fine-tunes as runs: set up, trained, resumed and written.

What is held during training is in `grasp.guard`.
"""
