"""Tables of encoder-decoder families: T5, BART, Marian (the original Transformer), Whisper."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.model import Norm, NormOrder, Position
from lmkit.interop.table import (
    ACTIVATIONS,
    Family,
    Json,
    Key,
    Layout,
    Row,
    activation,
    dense,
    name_of,
    named,
    norm,
    same,
)
from lmkit.nn.position import sinusoids

HALVES = ("encoder", "decoder")


def _blocks(half: str) -> str:
    return f"{half}.stack.blocks."


def t5_rows(config: EncDecConfig) -> Iterable[Row]:
    """T5's names."""
    tied = ("lm_head.weight",) if config.tie_embeddings else ()
    halves = tuple(f"{half}.embed_tokens.weight" for half in HALVES)
    yield Row("embed.table", "shared.weight", also=(*halves, *tied))
    if not config.tie_embeddings:
        yield Row("head.table", "lm_head.weight")
    for half in HALVES:
        ours, layer = _blocks(half), half + ".block.{layer}.layer."
        bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Row(f"{half}.bias.table", bias)
        yield from norm(f"{half}.norm", f"{half}.final_layer_norm", bias=False)
        attentions = [("attention", "0", "SelfAttention")]
        attentions += [("cross", "1", "EncDecAttention")] if half == "decoder" else []
        for name, number, theirs in attentions:
            yield Row(f"{ours}{name}_join.norm.scale", f"{layer}{number}.layer_norm.weight")
            for part, one in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
                yield from dense(
                    f"{ours}{name}.{part}", f"{layer}{number}.{theirs}.{one}", bias=False, ins=1 + (part == "out")
                )
        last = layer + str(len(attentions))
        yield Row(f"{ours}mlp_join.norm.scale", last + ".layer_norm.weight")
        names = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
        for part, one in (names | {"down": "wo"}).items():
            yield from dense(f"{ours}mlp.{part}", f"{last}.DenseReluDense.{one}", bias=False)


def _bart_layers(half: str, key_bias: bool) -> Iterable[Row]:
    ours, layer = _blocks(half), f"model.{half}.layers.{{layer}}."
    attentions = [("attention", "self_attn", "self_attn_layer_norm")]
    attentions += [("cross", "encoder_attn", "encoder_attn_layer_norm")] if half == "decoder" else []
    for name, theirs, their_norm in attentions:
        for part, one in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            bias, ins = key_bias or part != "k", 1 + (part == "out")
            yield from dense(f"{ours}{name}.{part}", f"{layer}{theirs}.{one}", bias=bias, ins=ins)
        yield from norm(f"{ours}{name}_join.norm", layer + their_norm)
    yield from dense(ours + "mlp.up", layer + "fc1")
    yield from dense(ours + "mlp.down", layer + "fc2")
    yield from norm(ours + "mlp_join.norm", layer + "final_layer_norm")


def bart_rows(config: EncDecConfig) -> Iterable[Row]:
    """BART's and Marian's names."""
    halves = tuple(f"model.{half}.embed_tokens.weight" for half in HALVES)
    yield Row("embed.table", "model.shared.weight", also=(*halves, "lm_head.weight"))
    if config.head_bias:
        yield Row("bias", "final_logits_bias", pad=1)
    for half in HALVES:
        if config.position is Position.learned:
            yield Row(f"{half}.input.position.table", f"model.{half}.embed_positions.weight")
        if config.embed_norm:
            yield from norm(f"{half}.input.norm", f"model.{half}.layernorm_embedding")
        yield from _bart_layers(half, key_bias=True)


def whisper_rows(config: EncDecConfig) -> Iterable[Row]:
    """Whisper's names."""
    yield Row("embed.table", "model.decoder.embed_tokens.weight", also=("proj_out.weight",))
    yield Row("decoder.input.position.table", "model.decoder.embed_positions.weight")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        yield Row(f"frontend.{ours}.kernel", f"model.encoder.{theirs}.weight", Layout.conv, taps=(3,))
        yield Row(f"frontend.{ours}.bias", f"model.encoder.{theirs}.bias")
    for half in HALVES:
        yield from _bart_layers(half, key_bias=False)
        yield from norm(f"{half}.norm", f"model.{half}.layer_norm")


def _read_t5(theirs: Json) -> Json:
    kind = theirs.get("feed_forward_proj") or "relu"
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = "gelu_new" if kind == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json: feed_forward_proj={kind!r} is not supported")
    tied = scaled = theirs.get("tie_word_embeddings", True) is not False
    if "scale_decoder_outputs" in theirs:  # new files say `tied` of all; whether it is so shows in the tensors alone
        scaled, tied = theirs["scale_decoder_outputs"], "lm_head.weight" not in theirs.get("tensors", ())
    return {
        "gated": gated,
        "activation": ACTIVATIONS[name],
        "head_scale": theirs["d_model"] ** -0.5 if scaled else 1.0,
        "tie_embeddings": tied,
    }


def _write_t5(config: EncDecConfig) -> Json:
    name = name_of(config.activation)
    gelu = "gated-gelu" if name == "gelu_pytorch_tanh" else f"gated-{name}"
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return tokens | {
        "feed_forward_proj": gelu if config.gated else name,
        "tie_word_embeddings": config.head_scale != 1.0,
    }


def _read_halves(theirs: Json) -> Json:
    for name in ("attention_heads", "ffn_dim"):
        if theirs[f"encoder_{name}"] != theirs[f"decoder_{name}"]:
            raise ConfigError(
                f"config.json: encoder_{name}={theirs[f'encoder_{name}']} with decoder_{name}="
                f"{theirs[f'decoder_{name}']}: lmkit's two halves have the same"
            )
    return {}


def _write_halves(config: EncDecConfig) -> Json:
    """The decoder's, and the special tokens that a configuration cannot be loaded without."""
    return {
        "decoder_attention_heads": config.num_heads, "decoder_ffn_dim": config.mlp_size, "is_encoder_decoder": True,
    } | {
        name: min(token, config.vocab_size - 1)
        for name, token in {
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        }.items()
    }  # fmt: skip


def _zero_bias(config: EncDecConfig) -> dict[str, np.ndarray]:
    return {} if config.head_bias else {"final_logits_bias": np.zeros((1, config.vocab_size), np.float32)}


def _fixed_positions(config: EncDecConfig) -> dict[str, np.ndarray]:
    table = sinusoids(jnp.arange(config.source_len), config.embed_dim, closed=True)
    return {"model.encoder.embed_positions.weight": np.asarray(table)}


def _sines(config: EncDecConfig) -> dict[str, np.ndarray]:
    """Marian's positions, which old files have."""
    table = np.asarray(sinusoids(jnp.arange(config.max_seq_len), config.embed_dim))
    return {f"model.{half}.embed_positions.weight": table for half in HALVES}


HALF_KEYS = same(
    {"vocab_size": "vocab_size", "embed_dim": "d_model", "num_layers": "encoder_layers",
     "num_decoder_layers": "decoder_layers", "num_heads": "encoder_attention_heads",
     "mlp_dim": "encoder_ffn_dim", "embed_scale": "scale_embedding"}, embed_scale=False,
)  # fmt: skip
LAYERNORM: Json = {"norm": Norm.layernorm, "norm_eps": 1e-5, "bias": True}
_halves = ((_read_halves, _write_halves),)
_length = Key("max_seq_len", "max_position_embeddings", 1024)
ENCDECS = (
    Family(
        "t5", EncDecConfig, named("T5ForConditionalGeneration"), t5_rows,
        (
            *same({"vocab_size": "vocab_size", "embed_dim": "d_model", "head_dim": "d_kv", "mlp_dim": "d_ff",
                   "num_layers": "num_layers", "num_decoder_layers": "num_decoder_layers", "num_heads": "num_heads",
                   "relative_buckets": "relative_attention_num_buckets", "norm_eps": "layer_norm_epsilon",
                   "relative_max_distance": "relative_attention_max_distance", "max_seq_len": "n_positions"},
                  num_decoder_layers=0, relative_max_distance=128, norm_eps=1e-6, max_seq_len=512),
        ),
        {"position": Position.relative, "norm": Norm.rmsnorm, "norm_order": NormOrder.pre, "bias": False,
         "attention_scale": 1.0},
        {"is_encoder_decoder": True}, hooks=((_read_t5, _write_t5),),
    ),
    Family("bart", EncDecConfig, named("BartForConditionalGeneration"), bart_rows,
           (*HALF_KEYS, _length, activation("activation_function", "gelu")),
           LAYERNORM | {"position": Position.learned, "position_offset": 2, "norm_order": NormOrder.post,
                        "embed_norm": True},
           {"tie_word_embeddings": True, "normalize_before": False, "add_final_layer_norm": False}, hooks=_halves,
           prefix="model.", made=_zero_bias),
    Family("marian", EncDecConfig, named("MarianMTModel"), bart_rows,
           (*HALF_KEYS, _length, activation("activation_function", "gelu")),
           LAYERNORM | {"position": Position.sinusoidal, "norm_order": NormOrder.post, "head_bias": True},
           {"tie_word_embeddings": True, "share_encoder_decoder_embeddings": True, "normalize_before": False},
           hooks=_halves, prefix="model.", implied=_sines),
    Family(
        "whisper", EncDecConfig, named("WhisperForConditionalGeneration"), whisper_rows,
        (*HALF_KEYS[:-1], Key("max_seq_len", "max_target_positions", 448), Key("num_mels", "num_mel_bins", 80),
         Key("max_source_len", "max_source_positions", 1500), activation("activation_function", "gelu")),
        LAYERNORM | {"position": Position.learned, "norm_order": NormOrder.pre, "key_bias": False},
        {"tie_word_embeddings": True, "scale_embedding": False}, hooks=_halves, prefix="model.",
        made=_fixed_positions,
    ),
)  # fmt: skip
