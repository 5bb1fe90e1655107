"""Scaling laws: what finished runs say of a larger one."""
