"""The tiny world: a corpus, a base model and fine-tunes small enough for two CPU cores."""
