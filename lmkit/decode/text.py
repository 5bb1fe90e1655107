"""Tokens to text as they come: no half characters, nothing of a stop string."""

from collections.abc import Callable, Sequence

from lmkit.config.base import ConfigError

_HALF = "\ufffd"  # what a decoder makes of bytes that are no character yet
_CONTEXT = 8  # tokens before the new ones that decide how those are written (spaces, above all)


class TextStream:
    """The text of one row, piece by piece.

    Args:
        decode: token ids to text.
        prompt: ids before the first one; they are not shown again.
        stop: strings that end the text; neither they nor what follows are shown.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = (), stop: Sequence[str] = ()):
        if isinstance(stop, str):
            raise ConfigError(f"stop={stop!r}: give a list of strings, such as [{stop!r}]")
        self._decode, self._stop = decode, [word for word in stop if word]
        self._ids = list(prompt)[-_CONTEXT:]
        self._start, self._read = 0, len(self._ids)  # of the context, and of what is not yet text
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now; '' where it is not, and once a stop string has come."""
        if self.stopped:
            return ""
        self._ids.append(int(token))
        text = self._fresh()
        if text.endswith(_HALF):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._past_stops(text)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._past_stops(self._fresh())
        text, self._held = text + self._held, ""
        self._start = self._read = len(self._ids)
        return text

    def _fresh(self) -> str:
        """The text of the tokens that have not been read yet, behind that of those before them."""
        before = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _past_stops(self, text: str) -> str:
        text, self._held = self._held + text, ""
        found = [place for word in self._stop if (place := text.find(word)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        sure = len(text)
        for word in self._stop:
            longest = next((n for n in range(len(word) - 1, 0, -1) if text.endswith(word[:n])), 0)
            sure = min(sure, len(text) - longest)
        self._held = text[sure:]
        return text[:sure]
