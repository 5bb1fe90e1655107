"""Every family equals transformers: logits, loss, every gradient; and goes back to it byte for byte.

Needs the extra `parity` (torch on CPU, transformers).
"""

from pathlib import Path

import numpy as np
import pytest

LOUD = "LOUD: parity with transformers is not tested; pip install 'lmkit[parity]'"
torch = pytest.importorskip("torch", reason=LOUD)
transformers = pytest.importorskip("transformers", reason=LOUD)

from interop.compare import SEQ, TOKENS, measure
from interop.reference import MODELS
