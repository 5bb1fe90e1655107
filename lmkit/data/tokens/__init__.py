"""Text to tokens and back: tokenizers, their training, chat templates."""
