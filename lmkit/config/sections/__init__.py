"""The sections of an experiment, one file a section of the YAML: names, types, defaults, documentation, checks."""
