"""What is on disk: TensorStore frames of tokens and records, how they are built and checked."""
