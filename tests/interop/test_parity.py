"""Every family equals transformers: logits, loss, every gradient; and goes back to it byte for byte.

Needs the extra `parity` (torch on CPU, transformers). `-n 0 --write-docs` puts the figures into docs/models.md.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export.test_layouts import model_of, small
from flax import nnx
from interop.docs_table import write_parity
from safetensors.numpy import load_file

from helpers import params_of
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import DType
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.interop import load_params, read_config, save_folder
from lmkit.interop.table import unlike
from lmkit.models import build_model

LOUD = "LOUD: parity with transformers is not tested; pip install 'lmkit[parity]'"
torch = pytest.importorskip("torch", reason=LOUD)
transformers = pytest.importorskip("transformers", reason=LOUD)

from interop.compare import Measured, measure, real_positions, their_logits
from interop.reference import MODELS, make

FIGURES: dict[str, Measured] = {}
DECODERS = ["gpt2", "llama-biased-scaled-tied", "qwen3", "mixtral", "gemma3"]


@pytest.mark.parametrize("name", MODELS)
def test_family(name: str, tmp_path: Path) -> None:
    """import -> logits within 1e-4, loss and gradients within 1e-3; export -> reload -> byte-equal tensors."""
    measured = FIGURES[name] = measure(name, tmp_path)
    assert measured.logits < 1e-4
    assert measured.loss < 1e-3
    assert measured.gradient < 1e-3

    out = tmp_path / "out"
    save_folder(out, measured.config, measured.params, shard_bytes=50_000)
    assert unlike(measured.config, read_config(out)) == []
    before, after = load_file(tmp_path / "weights" / "model.safetensors"), {}
    for path in out.glob("*.safetensors"):
        after |= load_file(path)
    assert set(before) == set(after)
    for key, value in before.items():
        if key == "model.encoder.embed_positions.weight":  # fixed sines, which each side works out for itself
            np.testing.assert_allclose(after[key], value, atol=1e-5)
        else:
            assert after[key].dtype == value.dtype
            assert after[key].shape == value.shape
            assert after[key].tobytes() == value.tobytes(), key

    reloaded, info = type(make(name)).from_pretrained(out, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    again = their_logits(reloaded.eval(), measured.config)  # of padding, one implementation makes this, another that
    np.testing.assert_allclose(real_positions(again), real_positions(measured.their_logits), atol=1e-4)
    if name != "siglip":  # its tower of texts has no weights here
        automatic = transformers.AutoModel.from_pretrained(out)
        assert automatic.config.model_type == reloaded.config.model_type


@pytest.mark.parametrize("name", DECODERS)
def test_packed_documents_equal_theirs_alone(name: str, tmp_path: Path) -> None:
    """Two documents in one row, with segments and positions of their own, against each by itself."""
    theirs = make(name)
    theirs.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    graph, shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    model = nnx.merge(graph, nnx.State(load_params(tmp_path, config, shapes)))
    rng = np.random.default_rng(5)
    documents = [rng.integers(4, 90, (1, length)) for length in (17, 23)]
    segments = np.repeat([[1, 2]], [17, 23], axis=1)
    positions = np.concatenate([np.arange(17), np.arange(23)])[None]
    got = model(jnp.asarray(np.concatenate(documents, axis=1)), jnp.asarray(segments), jnp.asarray(positions))
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor(one)).logits.numpy() for one in documents], axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_an_encoder_without_heads_and_a_vit_without_one(tmp_path: Path) -> None:
    """Files of the bare model leave out its prefix, and its class says which heads there are."""
    for name, bare in (("bert", "bert"), ("roberta", "roberta"), ("vit", "vit"), ("gpt2", "transformer")):
        inner = getattr(make(name), bare)
        inner.save_pretrained(tmp_path / name)
        config, notes = read_config(tmp_path / name), []
        _, shapes = params_of(nnx.eval_shape(lambda config=config: build_model(config, nnx.Rngs(0))))
        params = load_params(tmp_path / name, config, shapes, notes=notes)
        assert notes == []
        table = params["patches"]["project"]["bias"] if name == "vit" else params["embed"]["table"]
        theirs = dict(inner.named_parameters())
        key = {"vit": "embeddings.patch_embeddings.projection.bias", "gpt2": "wte.weight"}.get(
            name, "embeddings.word_embeddings.weight"
        )
        np.testing.assert_array_equal(table, theirs[key].detach().numpy())


def test_bfloat16_runs_close(tmp_path: Path) -> None:
    """The same weights in bfloat16 compute: near the float32 logits, so nothing is cast away on the way in."""
    theirs = make("llama")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    config = dataclasses.replace(read_config(tmp_path), dtype=DType.bfloat16)
    graph, shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    params = load_params(tmp_path, config, shapes)
    tokens = np.random.default_rng(0).integers(4, 90, (2, 20))
    got = nnx.merge(graph, nnx.State(params))(jnp.asarray(tokens))
    with torch.no_grad():
        expected = theirs.float()(torch.tensor(tokens)).logits.numpy()
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_a_tokenizer_comes_along(tmp_path: Path) -> None:
    """AutoTokenizer on what we wrote gives the ids of ours."""
    ours = train_bpe(["some words and some more words, again"] * 50, TokenizerConfig(vocab_size=270))
    ours.save(tmp_path / "tokenizer.json")
    config = GPTConfig(vocab_size=300, num_layers=1, num_heads=2, embed_dim=16, gated=True)
    _, params = params_of(build_model(config, nnx.Rngs(0)))
    save_folder(tmp_path / "out", config, params, tokenizer=tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "some more words, more words"
    assert theirs(text)["input_ids"] == ours.encode_batch([text])[0].tolist()


@pytest.mark.parametrize("name", ["gpt_tiny", "vit_digits"])
def test_what_experiments_train(name: str, tmp_path: Path) -> None:
    """The families that compute them: the fixed positions of images, and no rotary scaling where ours has none."""
    config = small(model_of(name))
    graph, shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)
    save_folder(tmp_path / "out", config, params, fallback=True)
    images = name == "vit_digits"
    given = rng.normal(size=(2, 8, 8, 1)).astype(np.float32) if images else rng.integers(0, 32, (2, 12))
    ours = nnx.merge(graph, nnx.State(jax.tree.map(jnp.asarray, params)))(jnp.asarray(given))
    kind = transformers.AutoModelForImageClassification if images else transformers.AutoModelForCausalLM
    theirs, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(given.transpose(0, 3, 1, 2) if images else given)).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_write_docs(request: pytest.FixtureRequest) -> None:
    """Last, with --write-docs: the parity table of docs/models.md."""
    if request.config.getoption("--write-docs"):
        assert set(FIGURES) == set(MODELS), "run the whole file, with -n 0"
        write_parity({name: (one.logits, one.loss, one.gradient) for name, one in FIGURES.items()})
    assert set(DECODERS) <= set(MODELS)
