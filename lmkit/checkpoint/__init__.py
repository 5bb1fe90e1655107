"""Checkpoints: saved asynchronously and sharded, committed atomically, verified on restore, restored on any mesh."""

from lmkit.checkpoint.checkpoints import CheckpointError, Checkpoints, load_params, load_parts

__all__ = ["CheckpointError", "Checkpoints", "load_params", "load_parts"]
