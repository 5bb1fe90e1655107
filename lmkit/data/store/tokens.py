"""The token store: a stream of tokens a split, read at random in windows.

    STORE/tokenizer.json
    STORE/parts/<part>/<split>/tokens       uint16 or uint32
    STORE/parts/<part>/<split>/ends         int64: for each document, the position after its last token
    STORE/parts/<part>/<split>/names        uint8: the names of the documents in UTF-8, one after the other
    STORE/parts/<part>/<split>/name_ends    int64: where each name ends
    STORE/parts/<part>/<split>/weights      float32: of each token's loss, where the documents say so

A part of a split starts with the end token, and each document is followed by one: a document's tokens are predicted
from the end token before it, and its own end is predicted too. Between two parts the end token counts once. Ends are
positions in the part.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lmkit.data.store.frame import CorruptError, Ends, Frame, Positions
from lmkit.data.store.part_writer import Array

FORMAT = 2
TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)


def arrays_of(vocab_size: int, weights: bool, larger: int = 1) -> dict[str, Array]:
    """The arrays of a part. A token beyond the vocabulary is what a missing file reads as.

    `larger`: so many times the values a file.
    """
    # 2^16 tokens would leave no number for what is missing
    tokens = Array("uint16", fill=(1 << 16) - 1) if vocab_size < 1 << 16 else Array("uint32", fill=(1 << 32) - 1)
    one = {
        "tokens": tokens,
        "ends": Array("int64", 1 << 20),
        "names": Array("uint8"),
        "name_ends": Array("int64", 1 << 20),
    }
    one |= {"weights": Array("float32")} if weights else {}
    return {f"{split}/{name}": how._replace(shard=how.shard * larger) for split in SPLITS for name, how in one.items()}


class TokenStore:
    """A finished store. Reading is safe from many threads; it can be sent to another process.

    Args:
        place: a folder, or s3://, gs://, http(s)://.
        cache_bytes: of decoded tokens that are kept.
        skip_corrupt: rows that cannot be read are left out and counted in `lost` instead of raising CorruptError.
    """

    def __init__(self, place: str | Path, cache_bytes: int = 1 << 26, *, skip_corrupt: bool = False):
        lead = {f"{split}/{name}": 1 for split in SPLITS for name in ("tokens", "weights")}
        self.frame = Frame(place, cache_bytes, lead)
        self.place, self.meta, self.skip_corrupt = self.frame.place, self.frame.meta, skip_corrupt
        self.frame.require(FORMAT, skip_corrupt)
        counts = {f"splits.{split}.{what}": int for split in SPLITS for what in ("tokens", "documents", "bytes")}
        words = dict.fromkeys(("tokenizer_sha256", "text_sha256"), str)
        self.frame.check_meta({"vocab_size": int, "end_id": int, "holdout_every": int} | counts | words)
        self.lost: dict[str, int] = {}  # what is wrong -> rows that it cost
        # whether its tokens have weights of their own
        self.weighed = any(f"{TRAIN}/weights" in part["arrays"] for part in self.meta["parts"])
        self._ends: dict[str, np.ndarray] = {}

    def document_ends(self, split: str) -> np.ndarray:
        """int64 [documents]: the position after each document's last token."""
        if split not in self._ends:
            self._ends[split] = self.lazy_ends(split)[:]
        return self._ends[split]

    def lazy_ends(self, split: str) -> Ends:
        """`document_ends`, read by slices and not kept."""
        return self.frame.ends(f"{split}/ends", of=f"{split}/tokens")

    @property
    def identity(self) -> list[Any]:
        """What any copy of the store has, and no store of other tokens: known without reading them."""
        return [self.meta[name] for name in ("text_sha256", "tokenizer_sha256", "splits")]

    def document_name(self, split: str, number: int) -> str:
        """What a document was called where it came from."""
        if (name := f"{split}/name_ends") not in self._ends:
            self._ends[name] = self.frame.ends(name, of=f"{split}/names")[:]
        ends = self._ends[name]
        start = int(ends[number - 1]) if number else 0
        return bytes(self.frame.read(f"{split}/names", [start], [ends[number]])[0]).decode()

    def num_tokens(self, split: str) -> int:
        """Tokens of a split, the end tokens among them."""
        return self.meta["splits"][split]["tokens"]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of text per token, end tokens counted as tokens: turns nats/token into bits/byte."""
        return self.meta["splits"][split]["bytes"] / max(self.num_tokens(split) - 1, 1)

    def read(self, split: str, starts: Positions, stops: Positions) -> list[np.ndarray]:
        """The tokens of a split from each start to each stop, of the store's own kind of integer. One batched read.

        Raises CorruptError, naming the file, for what is not as it was written.
        """
        return self.try_read(split, starts, stops)[0]

    def try_read(self, split: str, starts: Positions, stops: Positions) -> tuple[list[np.ndarray], np.ndarray]:
        """The same, and bool [len(starts)]: whether a row could be read; with skip_corrupt a lost one is end tokens."""
        name, vocab_size = f"{split}/tokens", self.meta["vocab_size"]
        rows, good = [], np.ones(len(starts), bool)
        for number, found in enumerate(self.frame.try_read(name, starts, stops)):
            if not isinstance(found, CorruptError) and len(found) and found.max() >= vocab_size:
                gone = f"{self.place}: {name} has no tokens at {starts[number]}: a file of it is missing"
                found = CorruptError(gone)
            if isinstance(found, CorruptError):
                if not self.skip_corrupt:
                    raise found
                self.lost[str(found)] = self.lost.get(str(found), 0) + 1
                good[number] = False
                found = np.full(int(stops[number] - starts[number]), self.meta["end_id"])
            rows.append(found)
        return rows, good

    def windows(self, split: str, starts: Positions, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start; see `read`."""
        return self.try_windows(split, starts, length)[0]

    def try_windows(self, split: str, starts: Positions, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The same, and what `try_read` tells of the rows."""
        starts = np.asarray(starts, np.int64)
        rows, good = self.try_read(split, starts, starts + length)
        return np.stack(rows).astype(np.int32), good

    def weights(self, split: str, starts: Positions, stops: Positions) -> list[np.ndarray]:
        """float32: what the loss of the same tokens weighs; 1 in a store that does not say, 0 where it is damaged."""
        starts, stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        if not self.weighed:
            return [np.ones(size, np.float32) for size in stops - starts]
        found = self.frame.try_read(f"{split}/weights", starts, stops)
        named = zip(found, (stops - starts).tolist(), strict=True)
        return [np.zeros(size, np.float32) if isinstance(one, CorruptError) else one for one, size in named]
