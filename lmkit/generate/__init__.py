"""`lmkit.generate`: text from a model."""
