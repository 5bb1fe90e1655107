"""The arithmetic of a step: memory, FLOPs, traffic and time, on hardware that is here or not."""
