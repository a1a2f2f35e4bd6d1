"""LoRA adapters as PEFT writes them: files, settings, tensors, and the modules they update.

Reads and checks only; decompositions are in `analysis.spectra`.
"""
