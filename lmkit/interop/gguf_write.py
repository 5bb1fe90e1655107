"""A model as one GGUF file, which llama.cpp loads: written a tensor at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import RopeScaling
from lmkit.interop.gguf import llama3_divisors
from lmkit.interop.gguf_arch import Architecture, architecture_for
from lmkit.interop.gguf_vocabulary import Vocabulary
from lmkit.interop.save import check_params, tensor_plan

# Our names, and GGUF's of the tensors' type and of the file.
TYPES = {
    "float32": ("F32", "ALL_F32"), "float16": ("F16", "MOSTLY_F16"), "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"), "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}  # fmt: skip
_BLOCK = 32  # numbers with one scale
_EXACT = ("position_embd.weight", "_norm.weight")  # stay float32, as vectors do, in llama.cpp's converter


def check_gguf(config: Any, dtype: str) -> Architecture:
    """The architecture that a model is written as. Raises ConfigError, with the reason, where there is none."""
    if dtype not in TYPES:
        raise ConfigError(f"export.dtype={dtype}: of export.format=gguf there are {', '.join(TYPES)}")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ConfigError("export.format=gguf needs the package gguf: pip install 'lmkit[gguf]'") from error
    return architecture_for(config)[0]


def save_gguf(
    path: Path,
    config: GPTConfig,
    params: Any,
    *,
    dtype: str,
    vocabulary: Vocabulary,
    name: str = "",
    license: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Writes the file and returns lines on tensors that have another type than was asked for.

    The host holds one tensor at a time beside the parameters. Matrices are of `dtype`, norms, biases and a table of
    positions float32. Of q4_0 the head is q8_0, as llama.cpp's own quantiser keeps more bits of it; rows that are no
    multiple of a block of 32 are float16.

    Args:
        params: float32, in a tree like the model's.
        progress: called with (bytes done, bytes in all).

    Raises ConfigError, before anything is written, where llama.cpp does not compute what the model does.
    """
    check_gguf(config, dtype)
    import gguf

    kind, family = architecture_for(config)
    check_params(config, params)
    writer = gguf.GGUFWriter(str(path), kind.name)
    writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
    if dtype.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for add, value in ((writer.add_name, name), (writer.add_license, license)):
        if value:
            add(value)
    _add_model(writer, kind, config)
    _add_vocabulary(writer, vocabulary, config.vocab_size)
    plan: list[tuple[str, tuple[int, ...], Any, Callable[[], np.ndarray]]] = []
    rounded: list[str] = []
    for theirs, shape, read in tensor_plan(family, config, params):
        stored = kind.stored(theirs)
        shape = shape[::-1] if len(shape) == 2 and kind.turns(theirs) else shape
        wanted = _type(stored, shape, dtype, config)
        if dtype.startswith("q") and wanted == "F16":
            rounded.append(stored)
        plan.append((stored, shape, gguf.GGMLQuantizationType[wanted],
                     lambda theirs=theirs, read=read: kind.changed(theirs, read(), config)))  # fmt: skip
    if config.rope_scaling is RopeScaling.llama3:
        divisors = llama3_divisors(config.rope_theta, config.head_size, config.rope_factor, config.rope_original_len)
        plan.append(("rope_freqs.weight", divisors.shape, gguf.GGMLQuantizationType.F32, lambda: divisors))
    sizes = [int(np.prod(gguf.quant_shape_to_byte_shape(shape, of))) if of.name != "F32" else int(np.prod(shape)) * 4
             for _, shape, of, _ in plan]  # fmt: skip
    for (stored, shape, of, _), size in zip(plan, sizes, strict=True):
        writer.add_tensor_info(stored, shape, np.dtype(np.float32), size, raw_dtype=of)
    try:
        _write(writer, plan, sizes, progress)
    finally:
        writer.close()
    return [f"{len(rounded)} tensors are float16, their rows being no multiple of {_BLOCK}: {rounded[0]}, ..."
            ] if rounded else []  # fmt: skip


def _write(writer: Any, plan: list[Any], sizes: list[int], progress: Callable[[int, int], None] | None) -> None:
    import gguf

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for (_, _, of, read), size in zip(plan, sizes, strict=True):
        value = np.ascontiguousarray(read(), np.float32)
        writer.write_tensor_data(gguf.quants.quantize(value, of))
        done += size
        if progress is not None:
            progress(done, sum(sizes))


def _type(stored: str, shape: tuple[int, ...], dtype: str, config: GPTConfig) -> str:
    """GGUF's type of a tensor."""
    if len(shape) < 2 or stored.endswith(_EXACT) or not stored.endswith(".weight"):
        return "F32"
    if not dtype.startswith("q"):
        return TYPES[dtype][0]
    if shape[-1] % _BLOCK:
        return "F16"
    head = stored == ("token_embd.weight" if config.tie_embeddings else "output.weight")
    return "Q8_0" if head else TYPES[dtype][0]


def _add_model(writer: Any, kind: Architecture, config: GPTConfig) -> None:
    import gguf

    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if not kind.rotated:
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is RopeScaling.linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling is RopeScaling.llama3:
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_len)
    if kind.every:
        if config.sliding_window:
            writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_local_theta or config.rope_theta)
    if config.attention_softcap:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logit_softcap:
        writer.add_final_logit_softcapping(config.logit_softcap)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, rows: int) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "no_vocab":
        return
    assert len(vocabulary.tokens) == rows, (len(vocabulary.tokens), rows)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space)
    for name, number in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(False)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
