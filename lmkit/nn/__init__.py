"""Blocks that models are assembled from. Each is an NNX module usable on its own, with or without a mesh.

Arrays carry their dimensions in their names: B batch, T query position, S key position, D embed, N heads,
K key/value heads, G = N / K query heads a key head, H head size, F mlp, V vocabulary, L layers.
"""
