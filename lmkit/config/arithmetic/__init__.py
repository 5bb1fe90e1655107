"""Arithmetic on the configuration that needs no device: sizes of meshes, pipelines, and what must divide what."""
