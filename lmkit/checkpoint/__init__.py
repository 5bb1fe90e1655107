"""Checkpoints: saved asynchronously and sharded, committed atomically, verified on restore, restored on any mesh."""

from lmkit.checkpoint.checkpoints import CheckpointError, Checkpoints, find_checkpoint, load_params, load_part

__all__ = ["CheckpointError", "Checkpoints", "find_checkpoint", "load_params", "load_part"]
