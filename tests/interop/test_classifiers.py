"""Encoders with a head for classes, against transformers: logits, every gradient, and back to it byte for byte.

Needs the extra `parity` (torch on CPU, transformers).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from helpers import params_of
from lmkit.config import ConfigError
from lmkit.config.sections.families import BERTConfig
from lmkit.interop import load_params, read_config, save_folder
from lmkit.interop.families import family_for, family_of
from lmkit.interop.table import unlike
from lmkit.models import build_model
from lmkit.nn.tree import flat

LOUD = "LOUD: parity with transformers is not tested; pip install 'lmkit[parity]'"
SIZES = {"vocab_size": 97, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80, "num_hidden_layers": 2,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
CLASSES = {
    "BertForSequenceClassification": ("BertConfig", {"max_position_embeddings": 64, "num_labels": 5}),
    "BertForTokenClassification": ("BertConfig", {"max_position_embeddings": 64, "num_labels": 3}),
    "RobertaForSequenceClassification": (
        "RobertaConfig",
        {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "num_labels": 2},
    ),
    "RobertaForTokenClassification": (
        "RobertaConfig",
        {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "num_labels": 4},
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_classifier_of_theirs(name: str, tmp_path: Path) -> None:
    """Logits within 1e-4, gradients within 1e-3 of the largest of each parameter; out again byte for byte."""
    torch = pytest.importorskip("torch", reason=LOUD)
    hf = pytest.importorskip("transformers", reason=LOUD)
    torch.manual_seed(0)
    schema, options = CLASSES[name]
    config = getattr(hf, schema)(**SIZES, **options)
    config._attn_implementation = "eager"
    theirs = getattr(hf, name)(config).float().eval()
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "weights")

    ours = read_config(tmp_path / "weights")
    per_token = "Token" in name
    assert (ours.num_classes, ours.classify_tokens) == (options["num_labels"], per_token)
    assert (ours.pooler, ours.lm_head) == (not per_token, False)
    graph, shapes = params_of(nnx.eval_shape(lambda: build_model(ours, nnx.Rngs(0))))
    params = load_params(tmp_path / "weights", ours, shapes)
    tokens = np.random.default_rng(0).integers(4, 96, (2, 19))
    real = (np.arange(19) < np.array([[19], [13]])).astype(np.int32)
    labels = np.random.default_rng(1).integers(0, options["num_labels"], (2, 19) if per_token else 2)
    weights = real if per_token else np.ones(2)

    output = theirs(torch.tensor(tokens), attention_mask=torch.tensor(real)).logits
    nll = torch.nn.functional.cross_entropy(output.flatten(0, -2), torch.tensor(labels).flatten(), reduction="none")
    (nll * torch.tensor(weights, dtype=torch.float32).flatten()).sum().backward()

    def loss(params):
        model = nnx.merge(graph, nnx.State(params))
        logits = model.class_logits(model.encode(jnp.asarray(tokens), jnp.asarray(real)))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * weights), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    expected = output.detach().numpy()
    keep = real.astype(bool) if per_token else np.ones(2, bool)
    assert np.abs(np.asarray(logits)[keep] - expected[keep]).max() < 1e-4

    for parameter in theirs.parameters():  # their gradients go through the same table as their weights
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    their_gradients = flat(load_params(tmp_path / "gradients", ours, shapes))
    scale = max(float(jnp.abs(leaf).max()) for leaf in their_gradients.values())
    for path, mine in flat(gradients).items():
        # a key's bias moves all scores of a query alike: its gradient is zero, theirs and ours only noise
        size = scale if path.endswith(".k.bias") else float(jnp.abs(their_gradients[path]).max()) + 1e-6 * scale
        assert float(jnp.abs(mine - their_gradients[path]).max()) < 1e-3 * size, path

    save_folder(tmp_path / "out", ours, params)
    before, after = (load_file(tmp_path / one / "model.safetensors") for one in ("weights", "out"))
    assert {key: value.tobytes() for key, value in before.items()} == {k: v.tobytes() for k, v in after.items()}
    again, info = getattr(hf, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert again.config.num_labels == options["num_labels"]


CONFIG = {"vocab_size": 64, "num_layers": 1, "num_heads": 2, "embed_dim": 16, "lm_head": False, "num_classes": 3}


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("tokens", [False, True])
def test_out_and_in_again(family: str, tokens: bool, tmp_path: Path) -> None:
    """Without transformers: our own classifiers, whose class says which head it is."""
    extra = {"position_offset": 2, "type_vocab_size": 1} if family == "roberta" else {}
    config = BERTConfig(**CONFIG, **extra, pooler=not tokens, classify_tokens=tokens)
    params = params_of(build_model(config, nnx.Rngs(0)))[1]
    assert save_folder(tmp_path / "out", config, params) == family_for(config)[0].model_type
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    word = "Token" if tokens else "Sequence"
    assert written["architectures"][0].endswith(f"For{word}Classification")
    assert written["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    back = read_config(tmp_path / "out")
    assert unlike(config, back) == []
    shapes = params_of(nnx.eval_shape(lambda: build_model(back, nnx.Rngs(0))))[1]
    loaded = flat(load_params(tmp_path / "out", back, shapes))
    assert all(np.array_equal(leaf, loaded[path]) for path, leaf in flat(params).items())


def test_heads_that_no_class_has_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'num_classes': 3, 'classify_tokens': False.*BertForTokenClassification"):
        family_for(BERTConfig(**(CONFIG | {"lm_head": True})))
    headless = BERTConfig(**(CONFIG | {"num_classes": 0}))
    assert family_of({"model_type": "bert"}).write_config(headless)["architectures"] == ["BertModel"]
