"""StableHLO: what the functions of an exported folder compute, called by the loader of docs/exchange.md."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS

from helpers import ROOT, rotated, tiny_config
from lmkit.compiler.topology import hardware_devices
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.families import BERTConfig, CLIPConfig, ViTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position
from lmkit.decode.loop import Decoder, Prompts
from lmkit.decode.sampling import Sampling
from lmkit.export.programs import PLATFORMS, check_programs, save_programs
from lmkit.models import build_model

PAGE = (ROOT / "docs" / "exchange.md").read_text()
LOADER = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def load(" in code)
MODELS: dict[str, Any] = {
    "llama": tiny_config(gated=True, num_kv_heads=2),
    "gpt2": tiny_config(position=Position.learned, norm=Norm.layernorm, bias=True, max_seq_len=64),
    "gemma3": tiny_config(
        gated=True, norm_offset=1.0, norm_order=NormOrder.both, embed_scale=True, activation=Activation.gelu_tanh,
        sliding_window=4, global_every=2, qk_norm=True, num_kv_heads=1, logit_softcap=20.0,
    ),
    "mistral": tiny_config(gated=True, sliding_window=4),
    "t5": KINDS["t5"].config, "transformer": KINDS["transformer"].config, "whisper": KINDS["whisper"].config,
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [3, 200, 4]]
STEPS = 6


def saved(config: Any, folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    """Writes the folder; returns the model's graph and parameters."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: (rng.normal(size=s.shape) * 0.2).astype(np.float32), nnx.to_pure_dict(shapes))
    folder.mkdir()
    save_programs(folder, config, params, dtype=dtype, facts={"vocab_size": getattr(config, "vocab_size", 0)})
    return graph, params


def computed(saved: tuple[Any, Any], call: Any = lambda model, *arguments: model(*arguments)) -> Any:
    """A function of the model, compiled."""
    graph, params = saved
    compiled = jax.jit(lambda params, *arguments: call(nnx.merge(graph, nnx.State(params)), *arguments))
    return lambda *arguments: compiled(params, *arguments)


def loader() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(LOADER, "loader", "exec"), names)
    return names


def generated(saved: tuple[Any, Any], config: Any, prompts: Prompts) -> np.ndarray:
    graph, params = saved
    decoder = Decoder(lambda params: nnx.merge(graph, nnx.State(params)), config, Sampling(temperature=0.0))
    return np.array(decoder.generate(jax.tree.map(jnp.asarray, params), prompts, max_new_tokens=STEPS))


@pytest.mark.parametrize("name", rotated([n for n in MODELS if n not in ("t5", "transformer", "whisper")], "gemma3"))
def test_the_loader_writes_what_lmkit_writes(name: str, tmp_path: Path) -> None:
    """Rows of three lengths, on from a cache; the logits are the model's."""
    config = MODELS[name]
    model = saved(config, tmp_path / "out")
    names = loader()
    np.testing.assert_array_equal(
        names["generate"](tmp_path / "out", PROMPTS, STEPS), generated(model, config, Prompts(PROMPTS))
    )
    manifest, weights, functions = names["load"](tmp_path / "out")
    tokens = np.arange(24).reshape(2, 12).astype(np.int32) * 7 % 256
    cache = {key: jnp.zeros([{"B": 2, "S": 16}.get(n, n) for n in one["shape"]], one["dtype"])
             for key, one in manifest["programs"]["decode"]["arguments"]["cache"].items()}  # fmt: skip
    _, cache = functions["prefill"](weights, tokens[:, :9], np.full(2, 9, np.int32), cache)  # in two pieces
    logits, _ = functions["prefill"](weights, tokens[:, 9:], np.full(2, 3, np.int32), cache)
    np.testing.assert_allclose(logits, computed(model)(tokens)[:, -1], rtol=1e-4, atol=1e-4)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("name", rotated(["t5", "transformer", "whisper"]))
def test_encoder_decoders(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    model = saved(config, tmp_path / "out")
    manifest, weights, functions = loader()["load"](tmp_path / "out")
    rng, places = np.random.default_rng(0), 8
    if config.num_mels:
        places = config.source_len
        source = rng.normal(size=(3, 2 * places, config.num_mels)).astype(np.float32)
    else:
        source = rng.integers(0, config.vocab_size, (3, places)).astype(np.int32)
    ids = np.ones((3, places), np.int32)
    ids[0, 5:] = 0 if not config.num_mels else 1
    num = np.array([len(one) for one in PROMPTS], np.int32)
    tokens = np.array([[*one, *[0] * (7 - len(one))] for one in PROMPTS], np.int32) % config.vocab_size
    cache = {key: jnp.zeros([{"B": 3, "S": 20}.get(n, n) for n in one["shape"]], one["dtype"])
             for key, one in manifest["programs"]["prefill"]["arguments"]["cache"].items()}  # fmt: skip
    logits, cache = functions["prefill"](weights, source, ids, tokens, num, cache)
    chosen = [np.asarray(logits.argmax(-1), np.int32)]
    for _ in range(STEPS - 1):
        logits, cache = functions["decode"](weights, chosen[-1], cache)
        chosen.append(np.asarray(logits.argmax(-1), np.int32))
    prompts = Prompts([row[:n].tolist() for row, n in zip(tokens, num, strict=True)], source, ids)
    np.testing.assert_array_equal(np.stack(chosen, 1), generated(model, config, prompts))


def test_encoders_and_images(tmp_path: Path) -> None:
    """Padding is not seen; kinds of tokens are."""
    small: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "embed_dim": 16}
    bert = BERTConfig(vocab_size=50, max_seq_len=32, lm_head=False, num_classes=3, pooler=True, **small)
    model = saved(bert, tmp_path / "bert")
    manifest, weights, functions = loader()["load"](tmp_path / "bert")
    tokens = np.arange(14).reshape(2, 7).astype(np.int32)
    mask, types = np.ones((2, 7), np.int32), (tokens > 9).astype(np.int32)
    mask[1, 5:] = 0
    arguments = [tokens, mask, types][: len(manifest["programs"]["encode"]["arguments"])]
    hidden = computed(model, lambda model, *args: model.encode(args[0], args[1], None, *args[2:]))(*arguments)
    np.testing.assert_allclose(functions["encode"](weights, *arguments), hidden, rtol=1e-4, atol=1e-4)
    logits = computed(model, lambda model, hidden: model.class_logits(hidden))(hidden)
    np.testing.assert_allclose(functions["classify"](weights, *arguments), logits, rtol=1e-4, atol=1e-4)
    short = functions["encode"](weights, *(one[1:, :5] for one in arguments))
    np.testing.assert_allclose(short, hidden[1:, :5], rtol=1e-4, atol=1e-4)
    assert manifest["programs"]["encode"]["arguments"]["tokens"]["shape"] == ["B", "T"]

    vit = ViTConfig(image_size=8, patch_size=4, num_classes=5, **small)
    model = saved(vit, tmp_path / "vit")
    _, weights, functions = loader()["load"](tmp_path / "vit")
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(functions["classify"](weights, images), computed(model)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bfloat16(tmp_path: Path) -> None:
    """Half of the bytes; vectors and logits stay float32."""
    config = MODELS["llama"]
    model = saved(config, tmp_path / "out", "bfloat16")
    manifest, weights, functions = loader()["load"](tmp_path / "out")
    assert weights["stack.blocks.mlp.up.kernel"].dtype == jnp.bfloat16
    assert weights["norm.scale"].dtype == np.float32
    tokens = np.arange(12)[None].astype(np.int32)
    cache = {key: jnp.zeros([{"B": 1, "S": 12}.get(n, n) for n in one["shape"]], one["dtype"])
             for key, one in manifest["programs"]["decode"]["arguments"]["cache"].items()}  # fmt: skip
    assert cache["k"].dtype == jnp.bfloat16
    logits, _ = functions["prefill"](weights, tokens, np.full(1, 12, np.int32), cache)
    exact = np.asarray(computed(model)(tokens)[:, -1])
    assert logits.dtype == np.float32
    assert 1e-4 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_float32_products_are_exact_and_every_platform_has_a_program(tmp_path: Path) -> None:
    """Whatever platform exports it: no call of a library that another platform lacks, no default precision."""
    saved(MODELS["llama"], tmp_path / "out")
    exported = jax.export.deserialize(bytearray((tmp_path / "out" / "prefill.stablehlo").read_bytes()))
    text = exported.mlir_module()
    assert exported.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all(line.count("HIGHEST") == 2 for line in products)
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert calls <= {"shape_assertion"}, calls
    assert ".py" not in text  # no paths of this machine


def test_a_gpu_exports_what_a_cpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(MODELS["llama"], tmp_path / "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    saved(MODELS["llama"], tmp_path / "gpu")
    one, other = (jax.export.deserialize(bytearray((tmp_path / name / "decode.stablehlo").read_bytes())).mlir_module()
                  for name in ("cpu", "gpu"))  # fmt: skip
    assert one == other


def test_a_process_with_jax_and_numpy_alone(tmp_path: Path) -> None:
    """lmkit, flax and safetensors are not to be imported there; a newer calling convention is refused."""
    config = MODELS["gpt2"]
    model = saved(config, tmp_path / "out")
    say = (
        "import sys\nfor name in ('lmkit', 'flax', 'safetensors', 'orbax', 'tokenizers'): sys.modules[name] = None\n"
        f"{LOADER}\nprint(json.dumps(generate(sys.argv[1], json.loads(sys.argv[2]), {STEPS}).tolist()))"
    )
    words = [sys.executable, "-c", say, str(tmp_path / "out"), json.dumps(PROMPTS)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(json.loads(done.stdout), generated(model, config, Prompts(PROMPTS)))
    file = tmp_path / "out" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calling_convention": 99}))
    with pytest.raises(SystemExit, match=rf"calling convention 99; jax {jax.__version__} here reads \d+ to \d+"):
        loader()["load"](tmp_path / "out")


@pytest.mark.parametrize(("config", "dtype", "words"), [
    (MODELS["llama"], "float16", ["export.dtype=float16", "float32, bfloat16"]),
    (tiny_config(gated=True, num_experts=4), "float32", ["model.num_experts=4", "export.format=huggingface"]),
    (CLIPConfig(), "float32", ["CLIPConfig"]),
    (ViTConfig(num_classes=0), "float32", ["model.num_classes=0"]),
])  # fmt: skip
def test_what_has_no_functions(config: Any, dtype: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_programs(config, dtype)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("hardware", "package", "extra"), [
    ("v5e_8", "libtpu", "tpu"), ("h100_8", "jax_plugins.xla_cuda13", "gpu-aot"),
])  # fmt: skip
def test_accelerators_compilers_take_them(hardware: str, package: str, extra: str, dtype: str, tmp_path: Path) -> None:
    """Ahead of time, with no TPU or GPU (the section `compilers` of .ci/run)."""
    pytest.importorskip(package, reason=f"LOUD: {package} is not installed (pip install 'lmkit[{extra}]')")
    device = hardware_devices(compose(["+experiment=gpt_tiny", f"hardware={hardware}"]).hardware)[0]
    config = dataclasses.replace(MODELS["gemma3"], vocab_size=512)
    saved(config, tmp_path / "out", dtype)
    manifest, weights, _ = loader()["load"](tmp_path / "out")
    place = jax.sharding.SingleDeviceSharding(device)
    sizes = {"B": 2, "T": 8, "S": 16}

    def spec(one: Any) -> Any:
        if "shape" not in one:
            return {name: spec(part) for name, part in one.items()}
        return jax.ShapeDtypeStruct([sizes.get(n, n) for n in one["shape"]], jnp.dtype(one["dtype"]), sharding=place)

    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in weights.items()}
    for name, one in manifest["programs"].items():
        exported = jax.export.deserialize(bytearray((tmp_path / "out" / one["file"]).read_bytes()))
        arguments = [spec(part) for part in one["arguments"].values()]
        compiled = jax.jit(exported.call).lower(shapes, *arguments).compile()
        assert "HloModule" in compiled.as_text(), name
