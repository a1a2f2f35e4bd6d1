"""LoRA adapters as PEFT writes them: files, settings, tensors, and the modules they update.

Arrays in, arrays out; a decomposition is in `analysis.spectra`.
"""
