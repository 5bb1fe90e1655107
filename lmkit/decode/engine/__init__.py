"""Continuous batching: many requests at a time, each with the text that it would have alone."""

from lmkit.decode.engine.engine import Engine

__all__ = ["Engine"]
