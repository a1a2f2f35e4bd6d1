"""The tiny world: a corpus, a base model and three fine-tunes small enough for two CPU cores."""
