"""Text to tokens to batches: sources, tokenizers, the TensorStore store, and (seed, step) -> batch."""
