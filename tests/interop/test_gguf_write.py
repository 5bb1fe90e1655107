"""GGUF files that are written: read back by our own reader, and what llama.cpp cannot compute is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from interop.test_exchange import random_params, same_trees
from interop.test_gguf import permuted
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers import ROOT, rotated, tiny_config
from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, GPTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position, RopeScaling
from lmkit.interop import (
    Vocabulary,
    check_gguf,
    load_params,
    read_config,
    read_gguf_tokenizer,
    read_vocabulary,
    save_gguf,
)  # fmt: skip
from lmkit.interop.gguf_arch import ARCHITECTURES, architecture_for
from lmkit.interop.gguf_tokenizer import PATTERNS
from lmkit.interop.table import unlike
from lmkit.nn.tree import flat

GEMMA: dict[str, Any] = {
    "gated": True, "norm_offset": 1.0, "norm_order": NormOrder.both, "embed_scale": True, "norm_eps": 1e-6,
    "activation": Activation.gelu_tanh, "tie_embeddings": True, "sliding_window": 8,
}  # fmt: skip
# One or more of each architecture, with what it may have.
WRITTEN: dict[str, GPTConfig] = {
    "llama": tiny_config(gated=True, num_kv_heads=2, rope_theta=5e5),
    "llama_biases": tiny_config(
        gated=True, bias=True, tie_embeddings=True, rope_scaling=RopeScaling.llama3, rope_factor=8.0,
        rope_original_len=64,
    ),
    "arcee": tiny_config(activation=Activation.relu2),
    "qwen2": tiny_config(gated=True, qkv_bias=True, num_kv_heads=1),
    "qwen3": tiny_config(
        gated=True, qk_norm=True, head_dim=32, rope_scaling=RopeScaling.linear, rope_factor=2.0, mlp_dim=96
    ),
    "gemma2": tiny_config(**GEMMA, global_every=2, attention_softcap=50.0, logit_softcap=30.0, num_layers=3),
    "gemma3": tiny_config(
        **GEMMA, global_every=6, num_layers=7, num_kv_heads=1, qk_norm=True, rope_theta=1e6, rope_local_theta=1e4
    ),
    "gpt2": tiny_config(
        position=Position.learned, norm=Norm.layernorm, bias=True, tie_embeddings=True, activation=Activation.gelu_tanh
    ),
}  # fmt: skip
# Of values of one standard deviation: half a step of 8 bits; of 4 bits, where the largest of a block is near 3.
CLOSE = {"float32": 0.0, "float16": 2e-3, "bfloat16": 2e-2, "q8_0": 2e-2, "q4_0": 0.55}


_trees: dict[str, Any] = {}


def write(path: Path, config: GPTConfig, dtype: str = "float32", **options: Any) -> tuple[Any, Any, list[str]]:
    if repr(config) not in _trees:
        _trees[repr(config)] = random_params(config)
    shapes, params = _trees[repr(config)]
    options = {"vocabulary": Vocabulary()} | options
    return shapes, params, save_gguf(path, config, params, dtype=dtype, **options)


@pytest.mark.parametrize("name", rotated(WRITTEN, "llama_biases", "gemma3", "gpt2"))
def test_every_architecture_comes_back(name: str, tmp_path: Path) -> None:
    """Bit for bit, but for Gemma's norms, whose scales GGUF holds with 1 added."""
    config, path = WRITTEN[name], tmp_path / "a.gguf"
    shapes, params, notes = write(path, config)
    assert not notes
    back = read_config(path)
    assert unlike(config, back) == unlike(back, config) == []
    assert back.max_seq_len == config.max_seq_len
    loaded = flat(load_params(path, back, shapes))
    for leaf, value in flat(params).items():
        shifted = name.startswith("gemma") and leaf.endswith(".scale")
        np.testing.assert_allclose(loaded[leaf], value, rtol=0, atol=1e-6 if shifted else 0, err_msg=leaf)
    assert {one.model_type for one in ARCHITECTURES.values()} == {architecture_for(one)[1].model_type
                                                                   for one in WRITTEN.values()}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "name"),
    rotated([*((dtype, "llama") for dtype in CLOSE), *(("q8_0", name) for name in WRITTEN if name != "llama")],
            ("bfloat16", "llama"), ("q4_0", "llama")),
)  # fmt: skip
def test_types(dtype: str, name: str, tmp_path: Path) -> None:
    """Matrices are rounded, vectors are not; of q4_0 the head has 8 bits."""
    config = WRITTEN[name]
    shapes, params, _ = write(tmp_path / "a.gguf", config, dtype)
    loaded = flat(load_params(tmp_path / "a.gguf", read_config(tmp_path / "a.gguf"), shapes))
    worst = {leaf: float(np.abs(loaded[leaf] - value).max()) for leaf, value in flat(params).items()}
    assert max(worst.values()) <= CLOSE[dtype]
    assert all(off < 1e-6 for leaf, off in worst.items() if leaf.endswith((".scale", ".bias")))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    kinds = {one.name: one.tensor_type.name for one in reader.tensors}
    expected = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert kinds["blk.0.ffn_up.weight"] == expected
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    if name == "llama" and dtype.startswith("q"):
        assert kinds["output.weight"] == "Q8_0"
        assert kinds["token_embd.weight"] == expected
    stored = reader.fields["general.file_type"].contents()
    assert stored == gguf.LlamaFileType["ALL_F32" if dtype == "float32" else f"MOSTLY_{expected}"]
    if dtype != "float32":
        assert max(worst.values()) > 0


def test_rows_that_no_block_fits_are_float16(tmp_path: Path) -> None:
    config = tiny_config(gated=True, mlp_dim=40)
    shapes, params, notes = write(tmp_path / "a.gguf", config, "q4_0")
    assert len(notes) == 1
    assert "2 tensors are float16" in notes[0]
    assert "blk.0.ffn_down" in notes[0]
    loaded = load_params(tmp_path / "a.gguf", read_config(tmp_path / "a.gguf"), shapes)
    down = loaded["stack"]["blocks"]["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(down, params["stack"]["blocks"]["mlp"]["down"]["kernel"], atol=2e-3)


@pytest.mark.parametrize(("config", "words"), [
    (tiny_config(gated=True, num_experts=4), ["mixtral", "llama, arcee"]),
    (tiny_config(gated=True, sliding_window=8), ["mistral"]),
    (tiny_config(activation=Activation.relu2, qk_norm=True), ["apertus"]),
    (tiny_config(gated=True, activation=Activation.relu), ["model.activation=relu", "silu"]),
    (tiny_config(gated=True, logit_softcap=3.0), ["no published family"]),
    (tiny_config(activation=Activation.relu2, bias=True), ["arcee has no model.bias=true"]),
    (dataclasses.replace(WRITTEN["gpt2"], activation=Activation.gelu), ["model.activation=gelu:", "gelu_tanh"]),
    (dataclasses.replace(WRITTEN["gemma2"], logit_softcap=0.0), ["gemma2 has no model.logit_softcap=0"]),
    (dataclasses.replace(WRITTEN["gemma2"], global_every=3), ["model.sliding_window=8", "all layers but one in 2"]),
    (dataclasses.replace(WRITTEN["gemma3"], attention_scale=0.5), ["model.attention_scale=0.5"]),
    (dataclasses.replace(WRITTEN["gemma3"], logit_softcap=9.0), ["gemma3 has no model.logit_softcap"]),
    (dataclasses.replace(WRITTEN["qwen3"], rope_scaling=RopeScaling.llama3), ["no model.rope_scaling=llama3"]),
    (dataclasses.replace(WRITTEN["llama_biases"], rope_low_freq=2.0), ["model.rope_scaling=llama3"]),
    (BERTConfig(vocab_size=9, num_layers=1, num_heads=2, embed_dim=8), ["BERTConfig", "export.format=huggingface"]),
])  # fmt: skip
def test_what_llama_cpp_does_not_compute(config: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_gguf(config, "float32")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_dtypes_that_there_are() -> None:
    with pytest.raises(ConfigError, match="export.dtype=q5_0: of export.format=gguf there are float32, .*, q4_0"):
        check_gguf(WRITTEN["llama"], "q5_0")


def test_a_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been read of the parameters is written before the next is read."""
    read, written = [], []
    quantize, changed = gguf.quants.quantize, type(ARCHITECTURES["llama"]).changed

    def note(self: Any, name: str, *args: Any, **options: Any) -> Any:
        read.append(len(written))
        return changed(self, name, *args, **options)

    def count(value: Any, of: Any) -> Any:
        written.append(of)
        return quantize(value, of)

    monkeypatch.setattr(type(ARCHITECTURES["llama"]), "changed", note)
    monkeypatch.setattr(gguf.quants, "quantize", count)
    seen: list[tuple[int, int]] = []
    write(tmp_path / "a.gguf", WRITTEN["llama"], "float16", progress=lambda *done: seen.append(done))
    assert read == list(range(len(read)))
    assert len(seen) == len(written) == len(read)
    assert seen[-1][0] == seen[-1][1]


def make_tokenizer(folder: Path, kind: str = "gpt-2", **changes: Any) -> Tokenizer:
    """A trained BPE that cuts text as llama.cpp's `kind` does, or SentencePiece's ("llama"), written to the folder."""
    inner = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    plain: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    special = ["<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "llama":
        inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        inner.normalizer = normalizers.Sequence(  # type: ignore[assignment]
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        special, alphabet = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    elif kind == "smollm":
        digits: Any = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])  # type: ignore[assignment]
    elif kind in PATTERNS:
        cut: Any = pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior="isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([cut, plain])  # type: ignore[assignment]
    else:
        inner.pre_tokenizer = plain
    text = (ROOT / "LICENSE").read_text()
    words = text if kind != "llama" else text.replace("\n", " ")
    trainer = trainers.BpeTrainer(
        vocab_size=600 if kind == "llama" else 400, special_tokens=special, show_progress=False,
        initial_alphabet=alphabet, max_token_length=12,
    )  # fmt: skip
    inner.train_from_iterator(words.split(". ") if kind == "llama" else [words], trainer)
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if kind == "llama":
        inner.decoder = decoders.Sequence(  # type: ignore[assignment]
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    state = json.loads(inner.to_str()) | changes
    if kind == "llama":
        for one in state["added_tokens"]:  # bytes are no special tokens of theirs
            one["special"] = not one["content"].startswith("<0x")
        state["added_tokens"] = state["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


TEXT = "It's 12345 models, don't\n\n  you think?   naïve 日本 (a+b) \t ok"


@pytest.mark.parametrize("kind", rotated(["gpt-2", "smollm", *PATTERNS], "gpt-2", "qwen2"))
def test_a_tokenizer_comes_back(kind: str, tmp_path: Path) -> None:
    inner = make_tokenizer(tmp_path, kind)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    found = read_vocabulary(tmp_path, {"eos_token_id": [0, 7], "bos_token_id": 0}, 404)
    assert (found.model, found.pre, found.begins, found.template) == ("gpt2", kind, False, "{{ messages }}")
    assert found.ids == {"bos": 0, "eos": 0, "eot": 7}
    assert found.tokens[400:] == ["[PAD400]", "[PAD401]", "[PAD402]", "[PAD403]"]
    assert found.kinds[0] == 3
    assert found.kinds[400:] == [5] * 4
    write(tmp_path / "a.gguf", dataclasses.replace(WRITTEN["llama"], vocab_size=404), vocabulary=found)
    back = read_gguf_tokenizer(tmp_path / "a.gguf")
    assert (back.begin, back.end) == ([], [0, 7])
    assert back.inner.encode(TEXT).ids == inner.encode(TEXT).ids
    assert len(inner.encode(TEXT).ids) < len(TEXT.encode())


def test_sentencepieces_bpe(tmp_path: Path) -> None:
    """Pieces that merge sooner have higher scores; bytes, control and unknown tokens their kinds."""
    make_tokenizer(tmp_path, "llama")
    found = read_vocabulary(tmp_path / "tokenizer.json", {"eos_token_id": 2}, 600)
    assert (found.model, found.pre, found.space, found.merges) == ("llama", "", True, [])
    assert [found.kinds[n] for n in (0, 1, 2, 3, 258)] == [2, 3, 3, 6, 6]
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    first, last = ("".join(state["model"]["merges"][n]) for n in (0, -1))
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores[first] == 0 > scores[last] > scores["<s>"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, ["WordPiece", "BPE"]),
    ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, ["Unigram", "BPE"]),
    ({"pre_tokenizer": {"type": "Whitespace"}}, ["cuts text in a way", "gpt-2"]),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, ["cuts text"]),
    ({"normalizer": {"type": "Lowercase"}}, ["cuts text"]),
])  # fmt: skip
def test_tokenizers_that_llama_cpp_has_not(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError) as caught:
        read_vocabulary(tmp_path, {}, 400)
    assert all(word in str(caught.value) for word in [*words, "tokenizer.json", "export.format"]), caught.value


def test_tokens_without_a_row(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="has the token 399, and the model a table of 300"):
        read_vocabulary(tmp_path, {}, 300)


def test_a_text_begins_as_the_template_says(tmp_path: Path) -> None:
    inner = make_tokenizer(tmp_path)
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    found = read_vocabulary(tmp_path, {"bos_token_id": 5, "eos_token_id": 0}, 400)
    assert (found.begins, found.ids["bos"]) == (True, 0)
    write(tmp_path / "a.gguf", dataclasses.replace(WRITTEN["llama"], vocab_size=400), vocabulary=found)
    assert read_gguf_tokenizer(tmp_path / "a.gguf").begin == [0]


def test_nothing_differs_of_two_writers(tmp_path: Path) -> None:
    for name in "ab":
        shapes, params, _ = write(tmp_path / f"{name}.gguf", WRITTEN["qwen2"], "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    back = load_params(tmp_path / "a.gguf", read_config(tmp_path / "a.gguf"), shapes)
    with pytest.raises(AssertionError):
        same_trees(params, back)


def test_what_the_files_hold(tmp_path: Path) -> None:
    """As llama.cpp reads it: rotated pairs side by side, Gemma's scales with 1 added, GPT-2's linear layers turned."""

    def stored(name: str) -> tuple[Any, dict[str, np.ndarray]]:
        _, params, _ = write(tmp_path / f"{name}.gguf", WRITTEN[name])
        reader = gguf.GGUFReader(tmp_path / f"{name}.gguf")
        return params["stack"]["blocks"], {one.name: np.array(one.data) for one in reader.tensors}

    blocks, tensors = stored("llama")
    for part in "qk":
        np.testing.assert_array_equal(tensors[f"blk.1.attn_{part}.weight"],
                                      permuted(blocks["attention"][part]["kernel"][1]))  # fmt: skip
    np.testing.assert_array_equal(tensors["blk.1.attn_norm.weight"], blocks["attention_join"]["norm"]["scale"][1])
    blocks, tensors = stored("gemma3")
    shifted = blocks["mlp_join"]["post_norm"]["scale"][1] + np.float32(1)
    np.testing.assert_array_equal(tensors["blk.1.post_ffw_norm.weight"], shifted)
    plain = blocks["attention"]["q"]["kernel"][1].reshape(64, -1).T
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight"], plain)
    blocks, tensors = stored("gpt2")
    joined = [blocks["attention"][part]["kernel"][1].reshape(64, -1) for part in "qkv"]
    np.testing.assert_array_equal(tensors["blk.1.attn_qkv.weight"], np.concatenate(joined, axis=1).T)
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight"], blocks["mlp"]["down"]["kernel"][1].T)
    assert "rope_freqs.weight" in stored("llama_biases")[1]
