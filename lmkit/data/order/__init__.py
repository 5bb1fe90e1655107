"""(seed, step) to the numbers of rows: shuffling, mixtures, packings."""
