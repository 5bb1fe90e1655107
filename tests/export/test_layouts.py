"""Every experiment leaves lmkit: as a published family, or in the layout that `open_model` reads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop.test_exchange import random_params, same_trees
from interop.test_tensors import rewrite

from helpers import params_of
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.paths import options_of
from lmkit.config.sections.families import ViTConfig
from lmkit.core.task import fit_model, without_idle_heads
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.interop import layout_for, load_params, read_config, save_folder
from lmkit.interop.table import unlike
from lmkit.models import build_model
from lmkit.weights import open_model

FAMILY = {
    "bert_sotu": "lmkit", "bert_sotu_era": "lmkit", "en_es": "lmkit", "gpt2_124m": "gpt2", "gpt3_175b": "gpt2",
    "gpt3_1b3": "gpt2", "gpt3_6b7": "gpt2", "gpt_small": "apertus", "gpt_tiny": "apertus", "llama3_70b": "llama",
    "llama3_8b": "llama", "mixtral_8x7b": "mixtral", "scaling_law": "apertus", "spam": "lmkit",
    "vit_digits": "siglip", "vit_fashion": "siglip", "whisper_digits": "lmkit",
}  # fmt: skip
WHY = {"bert_sotu": "position=rope", "en_es": "position=relative", "whisper_digits": "position=sinusoidal"}


def model_of(name: str) -> Any:
    """The model that a run of an experiment trains, of data with ten classes."""
    experiment = compose([f"+experiment={name}"])
    model = fit_model(experiment.model, None if isinstance(experiment.model, ViTConfig) else ByteTokenizer(), 0)
    classes = 10 if experiment.objective.kind.name == "classify" else 0
    return without_idle_heads(fit_model(model, None, classes), experiment)[0]


def small(config: Any) -> Any:
    """The same kind of model in a size that tests write."""
    less = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 0, "head_dim": 0, "embed_dim": 16, "mlp_dim": 24}
    if isinstance(config, ViTConfig):
        return dataclasses.replace(config, **less, image_size=8, patch_size=2)
    return dataclasses.replace(config, **less, vocab_size=32, max_seq_len=16)


@pytest.mark.parametrize("name", options_of("experiment"))
def test_the_family_of_each_experiment(name: str) -> None:
    family, theirs, why = layout_for(model_of(name))
    assert family.model_type == theirs["model_type"] == FAMILY[name]
    assert bool(why) == (FAMILY[name] == "lmkit")
    assert WHY.get(name, "") in why


@pytest.mark.parametrize("name", ["gpt_tiny", "vit_digits", "spam"])
def test_what_is_written_comes_back(name: str, tmp_path: Path) -> None:
    """Through `open_model`: every parameter, and a configuration that computes the same."""
    config = small(model_of(name))
    params = random_params(config)[1]
    assert save_folder(tmp_path / "out", config, params, fallback=True, shard_bytes=4_000) == FAMILY[name]
    saved = open_model(str(tmp_path / "out"))
    assert unlike(config, saved.config) == []
    back = saved.params().params
    same_trees(params, back)
    if name == "gpt_tiny":
        graph = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
        again = params_of(nnx.eval_shape(lambda: build_model(saved.config, nnx.Rngs(0))))[0]
        tokens = jnp.arange(6)[None]
        logits = nnx.merge(graph, nnx.State(jax.tree.map(jnp.asarray, params)))(tokens)
        np.testing.assert_allclose(nnx.merge(again, nnx.State(back))(tokens), logits, rtol=1e-5, atol=1e-5)


def test_a_published_family_is_asked_for(tmp_path: Path) -> None:
    """Without `fallback` the folder is one that others read, or an error."""
    config = small(model_of("bert_sotu"))
    params = random_params(config)[1]
    with pytest.raises(ConfigError, match="no published family"):
        save_folder(tmp_path / "out", config, params)
    save_folder(tmp_path / "out", config, params, fallback=True)
    (tmp_path / "out" / "model.yaml").unlink()
    with pytest.raises(ConfigError, match=r"model\.yaml cannot be read"):
        read_config(tmp_path / "out")


def test_fixed_positions_that_were_trained_are_named(tmp_path: Path) -> None:
    """Sines are written as a table. Where another program trained it, the key that says sines has to go."""
    config = small(model_of("vit_digits"))
    params = random_params(config)[1]
    for dtype in ("float32", "bfloat16"):
        save_folder(tmp_path / dtype, config, params, dtype=dtype)
        load_params(tmp_path / dtype, config, params)
    name = "vision_model.embeddings.position_embedding.weight"
    rewrite(tmp_path / "float32", lambda tensors: tensors.update({name: 2 * tensors[name]}))
    with pytest.raises(ConfigError, match="not what lmkit computes in its place"):
        load_params(tmp_path / "float32", config, params)
    path = tmp_path / "float32" / "config.json"
    theirs = json.loads(path.read_text())
    del theirs["vision_config"]["lmkit_fixed_positions"]
    path.write_text(json.dumps(theirs))
    learned = read_config(tmp_path / "float32")
    assert load_params(tmp_path / "float32", learned, random_params(learned)[0])["input"]["position"][
        "table"
    ].shape == (16, 16)
