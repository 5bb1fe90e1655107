"""Randomness without a state: hashes of integers, and permutations that are evaluated at a point."""

import numpy as np

_ROUNDS = 6
ROW, OTHER, SHARE, HELD = 11, 12, 13, 14  # uses of randomness in batches


def hash64(*words: np.ndarray | int) -> np.ndarray:
    """uint64 hash of integers, element by element (SplitMix64's finaliser, Steele et al. 2014, applied per word)."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for word in words:
            state = np.asarray(word, np.uint64) + state * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform(*words: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) of integers, element by element: the upper 53 bits of their hash."""
    return (hash64(*words) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def permute(index: np.ndarray, size: np.ndarray | int, *key: np.ndarray | int) -> np.ndarray:
    """A keyed permutation of range(size) at the points `index`.

    A balanced Feistel network on the next power of four, walked until it lands inside (Black and Rogaway 2002,
    section 3): fewer than four walks on average.
    """
    index, size = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(size, np.uint64))
    bits = np.ceil(np.log2(np.maximum(size, 2).astype(np.float64)) / 2).astype(np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    out, todo = index.copy(), np.ones(index.shape, bool)
    while todo.any():
        left, right = out >> bits, out & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (hash64(right, number, *key) & mask)
        out = np.where(todo, (left << bits) | right, out)
        todo = todo & (out >= size)
    return out.astype(np.int64)
