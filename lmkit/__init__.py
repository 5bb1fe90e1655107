"""lmkit: a JAX research toolkit for large models with sharding. Start with `python -m lmkit`."""

__version__ = "0.1.0"
