"""From sounds of any length to the windows that a model hears, and back to one text: for models of Whisper's kind."""
