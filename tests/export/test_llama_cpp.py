"""llama.cpp itself loads what export.format=gguf writes: the same ids of a text, the same greedy text.

npm's node-llama-cpp brings llama.cpp compiled. It is installed once, into the cache folder of the tests.
"""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop.test_gguf_write import WRITTEN, make_tokenizer

from lmkit.config.entry import run_verb
from lmkit.config.sections.model import Activation
from lmkit.decode.loop import Decoder, Prompts
from lmkit.decode.sampling import Sampling
from lmkit.interop import load_params, read_config, save_folder
from lmkit.models import build_model
from lmkit.nn.tree import flat, nested
from lmkit.weights import model_shapes, open_model

PACKAGE = "node-llama-cpp@3.22.1"
SCRIPT = Path(__file__).with_suffix("").with_name("llama_cpp.mjs")
# Each architecture with a tokenizer; all kinds of tokenizers.
TOKENIZERS = {
    "llama": "llama", "llama_biases": "llama-bpe", "arcee": "gpt-2", "qwen2": "qwen2", "qwen3": "smollm",
    "gemma2": "llama", "gemma3": "qwen2", "gpt2": "gpt-2",
}  # fmt: skip
PROMPTS = ["The model is", "It's 12345 tokens, don't\n\n  you think?   naïve 日本 (a+b) \t ok"]
STEPS = 20


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    """Runs the script on a file; skips where npm or the package is not to be had."""
    folder = Path(os.environ["LMKIT_CACHE"]) / PACKAGE.replace("@", "-")
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        if shutil.which("npm") is None:
            pytest.skip("LOUD: no npm here: what llama.cpp makes of GGUF files was not tested")
        folder.mkdir(parents=True, exist_ok=True)
        words = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"LOUD: {PACKAGE} is not to be had here: {done.stderr[-200:]}")
    shutil.copy(SCRIPT, folder)

    def run(file: Path) -> dict[str, Any]:
        words = ["node", SCRIPT.name, str(file), str(STEPS), *PROMPTS]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def folder_of(name: str, folder: Path) -> tuple[Any, Any]:
    """A model with random parameters and a trained tokenizer, as a folder in the Hugging Face layout."""
    inner = make_tokenizer(folder, TOKENIZERS[name])
    config = dataclasses.replace(WRITTEN[name], vocab_size=inner.get_vocab_size() + 4)
    shapes, rng = flat(model_shapes(config)), np.random.default_rng(3)
    sizes = {path: 0.1 if path.endswith((".scale", ".bias")) else 0.3 for path in shapes}
    sizes["embed.table"] /= 8 if config.embed_scale else 1  # else a token is most like itself
    params = {path: (rng.normal(size=leaf.shape) * sizes[path]).astype(np.float32) for path, leaf in shapes.items()}
    params |= {path: value + 1 - config.norm_offset for path, value in params.items() if path.endswith(".scale")}
    end = inner.token_to_id("</s>" if TOKENIZERS[name] == "llama" else "<|end|>")
    keys = {"eos_token_id": end, "bos_token_id": 1 if TOKENIZERS[name] == "llama" else end}
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    save_folder(folder / "hf", config, nested(params), tokenizer=folder, keys=keys)
    return config, keys


def greedy(config: Any, params: Any, rows: list[list[int]], end: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """The most likely tokens, and by how much the logit of each is above the next likely's."""
    graph = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
    decoder = Decoder(lambda params: nnx.merge(graph, nnx.State(params)), config, Sampling(temperature=0.0),
                      end_ids=[end])  # fmt: skip
    found = decoder.generate(params, Prompts(rows), max_new_tokens=STEPS)
    logits = jax.jit(lambda params, tokens: nnx.merge(graph, nnx.State(params))(tokens))
    best = [jax.lax.top_k(logits(params, jnp.array([[*row, *new]]))[0, len(row) - 1 :], 2)[0]
            for row, new in zip(rows, found, strict=True)]  # fmt: skip
    return found, [np.asarray(one[:, 0] - one[:, 1]) for one in best]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_greedy_text(name: str, tmp_path: Path, llama_cpp: Any) -> None:
    config, keys = folder_of(name, tmp_path)
    words = [f"init_from={tmp_path / 'hf'}", f"export.folder={tmp_path / 'out'}", "export.format=gguf"]
    assert run_verb("export", "lmkit.export.main:export", "about", words, reads=("init_from", "export.")) == 0
    found = llama_cpp(tmp_path / "out" / "model.gguf")
    codec = open_model(str(tmp_path / "hf")).codec()
    rows = [codec.bare(prompt) for prompt in PROMPTS]
    assert [one["ids"] for one in found["texts"]] == rows
    assert (found["bos"], found["eos"], found["template"]) == (*reversed(keys.values()), "{{ messages[0].content }}")
    params = load_params(tmp_path / "hf", config, model_shapes(config))
    mine, ahead = greedy(read_config(tmp_path / "hf"), params, rows, keys["eos_token_id"])
    # llama.cpp's GELU is a table of 16 bits: where two tokens are nearly as likely it may take the other
    close, compared = 4e-3 if config.activation is Activation.gelu_tanh else 1e-4, 0
    for one, new, margin in zip(found["texts"], mine, ahead, strict=True):
        sure = int(np.argmax(margin < close)) if (margin < close).any() else STEPS
        assert one["chosen"][:sure] == new[:sure], (one, new, margin)
        compared += len(new[:sure])
    assert compared >= STEPS, (compared, ahead)
    texts = [(one["text"].strip(), codec.decode(one["chosen"]).strip()) for one in found["texts"]]
    assert all(theirs == ours or "\ufffd" in ours for theirs, ours in texts), texts  # half of a letter


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0", "q4_0"])
def test_other_types_load(dtype: str, tmp_path: Path, llama_cpp: Any) -> None:
    """Rounded weights: the text begins as that of the same file read by lmkit does."""
    _, keys = folder_of("qwen2", tmp_path)
    words = [f"init_from={tmp_path / 'hf'}", f"export.folder={tmp_path / 'out'}", "export.format=gguf"]
    words += [f"export.dtype={dtype}"]
    assert run_verb("export", "lmkit.export.main:export", "about", words, reads=("init_from", "export.")) == 0
    file = tmp_path / "out" / "model.gguf"
    found, back = llama_cpp(file), read_config(file)
    rows = [one["ids"] for one in found["texts"]]
    mine, _ = greedy(back, load_params(file, back, model_shapes(back)), rows, keys["eos_token_id"])
    assert all(one["chosen"][:1] == new[:1] for one, new in zip(found["texts"], mine, strict=True))
