"""`python -m lmkit.verify`: the same step on one device and on a mesh must give the same loss and gradients."""
