"""Tables of decoder-only families."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import Norm, NormOrder, Position, RopeScaling, TransformerConfig
from lmkit.interop.table import BLOCKS, Family, Json, Key, Layout, Row, activation, dense, named, norm, same

LLAMA_KEYS = same(
    {
        "vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "embed_dim": "hidden_size",
        "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps",
    },
    num_kv_heads=0, head_dim=0, norm_eps=1e-6,
)  # fmt: skip
TIED, UNTIED = Key("tie_embeddings", "tie_word_embeddings", True), Key("tie_embeddings", "tie_word_embeddings", False)
MLP, EPS = Key("mlp_dim", "intermediate_size"), Key("norm_eps", "rms_norm_eps", 1e-5)
LLAMA: Json = {"position": Position.rope, "norm": Norm.rmsnorm, "gated": True}
GEMMA: Json = LLAMA | {"norm_offset": 1.0, "norm_order": NormOrder.both, "embed_scale": True}


def llama_rows(config: GPTConfig) -> Iterable[Row]:
    """Llama's names; the norms of Gemma and the experts of Mixtral and Qwen where there are."""
    layer, attention = "model.layers.{layer}.", "model.layers.{layer}.self_attn."
    yield Row("embed.table", "model.embed_tokens.weight", also=("lm_head.weight",) if config.tie_embeddings else ())
    yield Row("norm.scale", "model.norm.weight")
    if not config.tie_embeddings:
        yield Row("head.table", "lm_head.weight")
    yield Row(BLOCKS + "attention_join.norm.scale", layer + "input_layernorm.weight")
    both = config.norm_order is NormOrder.both
    before_mlp = "pre_feedforward_layernorm" if both else "post_attention_layernorm"
    yield Row(BLOCKS + "mlp_join.norm.scale", layer + before_mlp + ".weight")
    if both:
        yield Row(BLOCKS + "attention_join.post_norm.scale", layer + "post_attention_layernorm.weight")
        yield Row(BLOCKS + "mlp_join.post_norm.scale", layer + "post_feedforward_layernorm.weight")
    for part in "qkv":
        yield from dense(f"{BLOCKS}attention.{part}", f"{attention}{part}_proj", bias=config.bias or config.qkv_bias)
    yield from dense(BLOCKS + "attention.out", attention + "o_proj", bias=config.bias, ins=2)
    for part in "qk" if config.qk_norm else "":
        yield Row(f"{BLOCKS}attention.{part}_norm.scale", f"{attention}{part}_norm.weight")
    if not config.num_experts:
        for part in ("gate", "up", "down") if config.gated else ("up", "down"):
            yield from dense(f"{BLOCKS}mlp.{part}", f"{layer}mlp.{part}_proj", bias=config.bias)


def _experts(mixture: str, names: dict[str, str]) -> Callable[[GPTConfig], Iterable[Row]]:
    def rows(config: GPTConfig) -> Iterable[Row]:
        yield from llama_rows(config)
        place = f"model.layers.{{layer}}.{mixture}."
        yield from dense(BLOCKS + "mlp.router", place + "gate", bias=False)
        for ours, theirs in names.items():
            yield Row(f"{BLOCKS}mlp.{ours}", f"{place}experts.{{expert}}.{theirs}.weight", Layout.linear)

    return rows


def apertus_rows(config: GPTConfig) -> Iterable[Row]:
    """Apertus's names: Llama's but for the norms."""
    names = {"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"}
    for row in llama_rows(config):
        layer, _, rest = row.theirs.rpartition("{layer}.")
        stem, dot, ending = rest.partition(".")
        yield replace(row, theirs=f"{layer}{{layer}}.{names.get(stem, stem)}{dot}{ending}") if layer else row


def gpt2_rows(config: GPTConfig) -> Iterable[Row]:
    """GPT-2's names; its linear layers are stored [in, out], queries, keys and values side by side."""
    layer = "transformer.h.{layer}."
    yield Row("embed.table", "transformer.wte.weight", also=("lm_head.weight",))
    yield Row("input.position.table", "transformer.wpe.weight")
    yield from norm("norm", "transformer.ln_f")
    yield from norm(BLOCKS + "attention_join.norm", layer + "ln_1")
    yield from norm(BLOCKS + "mlp_join.norm", layer + "ln_2")
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        for number, part in enumerate("qkv"):
            yield Row(f"{BLOCKS}attention.{part}.{ours}", f"{layer}attn.c_attn.{theirs}", part=(number, 3))
        yield Row(f"{BLOCKS}attention.out.{ours}", f"{layer}attn.c_proj.{theirs}", ins=2)
        yield Row(f"{BLOCKS}mlp.up.{ours}", f"{layer}mlp.c_fc.{theirs}")
        yield Row(f"{BLOCKS}mlp.down.{ours}", f"{layer}mlp.c_proj.{theirs}")


def rope(default: float = 10_000.0, local_default: float = 0.0):
    """The hook of rotary keys, with what a family means where they are absent."""
    return partial(read_rope, default=default, local_default=local_default), _write_rope


def read_rope(theirs: Json, default: float = 10_000.0, local_default: float = 0.0) -> Json:
    """Rotary keys of both styles: `rope_theta` and `rope_scaling`, or `rope_parameters`, maybe by kind of layer."""
    given = theirs.get("rope_parameters") or {}
    full = given.get("full_attention") or (given if "full_attention" not in given else {})
    full = full or theirs.get("rope_scaling") or {}
    theta = full.get("rope_theta") or theirs.get("global_rope_theta") or theirs.get("rope_theta") or default
    sliding = given.get("sliding_attention") or {}
    if (kind := sliding.get("rope_type") or "default") != "default":
        raise ConfigError(f"config.json: rope_type={kind!r} of sliding_attention is not supported, only default")
    local = (
        sliding.get("rope_theta")
        or theirs.get("local_rope_theta")
        or theirs.get("rope_local_base_freq")
        or local_default
    )
    for place in (theirs, full, sliding):
        if (part := place.get("partial_rotary_factor")) not in (None, 1, 1.0):
            raise ConfigError(f"config.json: partial_rotary_factor={part!r} is not supported, only 1.0")
    ours: Json = {"rope_theta": float(theta), "rope_local_theta": float(local)}
    kind = full.get("rope_type") or full.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"config.json: rope_type={kind!r} is not supported, only default, linear or llama3")
    if kind != "default":
        ours |= {"rope_scaling": RopeScaling[kind], "rope_factor": float(full["factor"])}
    if kind == "llama3":
        ours |= {
            "rope_original_len": full["original_max_position_embeddings"],
            "rope_low_freq": float(full["low_freq_factor"]),
            "rope_high_freq": float(full["high_freq_factor"]),
        }
    return ours


def _write_rope(config: GPTConfig) -> Json:
    scaling: Json | None = None
    if config.rope_scaling is not RopeScaling.none:
        scaling = {"rope_type": config.rope_scaling.name, "factor": config.rope_factor}
    if scaling and config.rope_scaling is RopeScaling.llama3:
        scaling |= {
            "original_max_position_embeddings": config.rope_original_len,
            "low_freq_factor": config.rope_low_freq,
            "high_freq_factor": config.rope_high_freq,
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def _read_apertus_rope(theirs: Json) -> Json:
    """Apertus has Llama 3.1's scaling where a file has no rotary keys."""
    if theirs.get("rope_parameters") is None and "rope_scaling" not in theirs:
        scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                   "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
        theirs = theirs | {"rope_scaling": scaling}
    return read_rope(theirs, default=12e6)


def _write_apertus_rope(config: GPTConfig) -> Json:
    old = _write_rope(config)
    scaling = old["rope_scaling"] or {"rope_type": "default"}
    return old | {"rope_parameters": scaling | {"rope_theta": config.rope_theta}}


def _write_local_rope(config: GPTConfig) -> Json:
    return {"rope_local_base_freq": config.rope_local_theta or config.rope_theta}


def read_layer_types(theirs: Json) -> Json:
    """Which layers have the window, from the list of their kinds. Raises ConfigError for no regular pattern."""
    kinds = theirs.get("layer_types")
    if not kinds:
        return {}
    full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    every = full[1] - full[0] if len(full) > 1 else len(kinds) if full else 0
    every = max(every, full[0] + 1) if full else 0
    first = full[0] if full else -1
    expected = [bool(every) and (layer - first) % every == 0 for layer in range(len(kinds))]
    if [kind == "full_attention" for kind in kinds] != expected:
        raise ConfigError(f"config.json: layer_types {kinds} follow no regular pattern")
    return {"global_every": every, "global_first": -1 if first == every - 1 else first}


def write_layer_types(config: TransformerConfig) -> Json:
    """The list of their kinds."""
    kinds = {True: "sliding_attention", False: "full_attention"}
    return {"layer_types": [kinds[config.window_of(layer) > 0] for layer in range(config.num_layers)]}


def _read_biases(theirs: Json) -> Json:
    """Llama has two switches where lmkit has one."""
    both = bool(theirs.get("attention_bias")), bool(theirs.get("mlp_bias"))
    if both[0] != both[1]:
        raise ConfigError(f"config.json: attention_bias={both[0]} with mlp_bias={both[1]} is not supported")
    return {"bias": both[0]}


def _write_biases(config: GPTConfig) -> Json:
    return {"attention_bias": config.bias, "mlp_bias": config.bias}


def _gemma_defaults(theirs: Json) -> Json:
    """The pattern of old files that have no layer_types."""
    every = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern")
    every = every or (2 if theirs["model_type"] == "gemma2" else 6)
    return {} if theirs.get("layer_types") else {"global_every": every}


def _read_experts(theirs: Json) -> Json:
    """Qwen's number of experts, under the names of old and of new files."""
    return {"num_experts": theirs.get("num_experts") or theirs.get("num_local_experts") or 128}


def _write_experts(config: GPTConfig) -> Json:
    return {"num_experts": config.num_experts, "num_local_experts": config.num_experts}


def _read_scale(theirs: Json) -> Json:
    return {"attention_scale": (theirs.get("query_pre_attn_scalar") or 256) ** -0.5}


def _write_scale(config: GPTConfig) -> Json:
    return {"query_pre_attn_scalar": round((config.attention_scale or config.head_size**-0.5) ** -2)}


ROPE = rope()
LAYER_TYPES = (read_layer_types, write_layer_types)
WINDOW = Key("sliding_window", "sliding_window", 4096, 0, write=lambda n: n or None)


def _caps(attention: float, logits: float) -> tuple[Key, Key]:
    return (
        Key("attention_softcap", "attn_logit_softcapping", attention, 0.0, write=lambda cap: cap or None),
        Key("logit_softcap", "final_logit_softcapping", logits, 0.0, write=lambda cap: cap or None),
    )


SILU = activation("hidden_act", "silu")
GELU = activation("hidden_activation", "gelu_pytorch_tanh")
DECODERS = (
    Family(
        "gpt2", GPTConfig, named("GPT2LMHeadModel"), gpt2_rows,
        (
            *same({"vocab_size": "vocab_size", "num_layers": "n_layer", "num_heads": "n_head", "embed_dim": "n_embd",
                   "mlp_dim": "n_inner", "max_seq_len": "n_positions", "norm_eps": "layer_norm_epsilon"},
                  mlp_dim=0, norm_eps=1e-5),
            activation("activation_function", "gelu_new"),
        ),
        {"position": Position.learned, "norm": Norm.layernorm, "bias": True, "tie_embeddings": True},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
         "add_cross_attention": False, "tie_word_embeddings": True},
        prefix="transformer.",
    ),
    Family("llama", GPTConfig, named("LlamaForCausalLM"), llama_rows, (*LLAMA_KEYS, MLP, UNTIED, SILU), LLAMA,
           {"pretraining_tp": 1}, hooks=(ROPE, (_read_biases, _write_biases)), prefix="model."),
    Family("qwen2", GPTConfig, named("Qwen2ForCausalLM"), llama_rows, (*LLAMA_KEYS, MLP, UNTIED, SILU),
           LLAMA | {"qkv_bias": True}, {"use_sliding_window": False}, hooks=(ROPE,), prefix="model."),
    Family("qwen3", GPTConfig, named("Qwen3ForCausalLM"), llama_rows, (*LLAMA_KEYS, MLP, UNTIED, SILU),
           LLAMA | {"qk_norm": True}, {"use_sliding_window": False, "attention_bias": False}, hooks=(ROPE,),
           prefix="model."),
    Family("mistral", GPTConfig, named("MistralForCausalLM"), llama_rows,
           (*LLAMA_KEYS, MLP, UNTIED, SILU, WINDOW), LLAMA, hooks=(ROPE,), prefix="model."),
    Family("arcee", GPTConfig, named("ArceeForCausalLM"), llama_rows,
           (*LLAMA_KEYS[:-1], EPS, MLP, UNTIED, activation("hidden_act", "relu2")), LLAMA | {"gated": False},
           hooks=(ROPE, (_read_biases, _write_biases)), prefix="model."),
    Family("apertus", GPTConfig, named("ApertusForCausalLM"), apertus_rows,
           (*LLAMA_KEYS[:-1], EPS, MLP, UNTIED, activation("hidden_act", "xielu")),
           LLAMA | {"gated": False, "qk_norm": True}, {"attention_bias": False, "mlp_bias": False},
           hooks=((_read_apertus_rope, _write_apertus_rope),), prefix="model."),
    Family(
        "mixtral", GPTConfig, named("MixtralForCausalLM"),
        _experts("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
        (*LLAMA_KEYS[:-1], EPS, MLP, UNTIED, SILU,
         Key("sliding_window", "sliding_window", 0, 0, write=lambda n: n or None),
         Key("num_experts", "num_local_experts", 8),
         Key("experts_per_token", "num_experts_per_tok", 2)),
        LLAMA | {"renormalize_experts": True}, hooks=(rope(1e6),), prefix="model.",
    ),
    Family(
        "qwen3_moe", GPTConfig, named("Qwen3MoeForCausalLM"),
        _experts("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
        (*LLAMA_KEYS, UNTIED, SILU, Key("mlp_dim", "moe_intermediate_size", 768),
         Key("experts_per_token", "num_experts_per_tok", 8), Key("renormalize_experts", "norm_topk_prob", False)),
        LLAMA | {"qk_norm": True},
        {"use_sliding_window": False, "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": ([],)},
        hooks=(ROPE, (_read_experts, _write_experts)), prefix="model.",
    ),
    Family(
        "gemma2", GPTConfig, named("Gemma2ForCausalLM"), llama_rows,
        (*LLAMA_KEYS, MLP, TIED, GELU, WINDOW, *_caps(50.0, 30.0)), GEMMA,
        {"attention_bias": False, "use_bidirectional_attention": False},
        hooks=(ROPE, (_read_scale, _write_scale), (_gemma_defaults, lambda config: {}), LAYER_TYPES), prefix="model.",
    ),
    Family(
        "gemma3_text", GPTConfig, named("Gemma3ForCausalLM"), llama_rows,
        (*LLAMA_KEYS, MLP, TIED, GELU, WINDOW, *_caps(0.0, 0.0)), GEMMA | {"qk_norm": True},
        {"attention_bias": False, "use_bidirectional_attention": False},
        hooks=(rope(1e6, 1e4), (_read_scale, _write_scale), (_gemma_defaults, _write_local_rope), LAYER_TYPES),
        prefix="model.",
    ),
)  # fmt: skip
