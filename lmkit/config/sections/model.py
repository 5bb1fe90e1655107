"""What every model is made of: the keys that the blocks of `lmkit/nn` read. families.py adds each family's own."""

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from lmkit.config.base import ConfigError, Section, key


class Position(Enum):
    """How a token learns its place."""

    rope = 0  # rotary: queries and keys turn by their place
    learned = 1  # a table of vectors
    none = 2
    sinusoidal = 3  # fixed sines and cosines (Vaswani et al. 2017, section 3.5)
    relative = 4  # a learned bias of the scores by bucketed distance (T5, Raffel et al. 2020, section 2.1)


class RopeScaling(Enum):
    """How rotary positions reach beyond the length a model was trained on."""

    none = 0
    linear = 1  # every wavelength times `rope_factor` (Chen et al. 2023, equation 4)
    llama3 = 2  # only the long ones, with a smooth passage between (Llama 3.1)


class Norm(Enum):
    """Normalisation of the residual stream."""

    rmsnorm = 0
    layernorm = 1


class NormOrder(Enum):
    """Where a sub-layer f is normalised."""

    pre = 0  # x + f(norm(x))
    post = 1  # norm(x + f(x)): the original Transformer, BERT
    both = 2  # x + norm(f(norm(x))): Gemma 2


class Activation(Enum):
    """Non-linearity of the MLP. `relu2` is the squared ReLU (So et al. 2021, Primer, section 4.1)."""

    gelu = 0
    gelu_tanh = 1
    silu = 2
    relu = 3
    relu2 = 4
    quick_gelu = 5  # x sigmoid(1.702 x): CLIP


class ResidualInit(Enum):
    """Initial scale of the projections that write to the residual stream."""

    scaled = 0  # std / sqrt(2 * layers): GPT-2 (Radford et al. 2019, section 2.3)
    zero = 1  # every block starts as the identity
    plain = 2  # like any other matrix


class Remat(Enum):
    """What the backward pass keeps of a layer, from most memory to least."""

    none = 0  # keep everything
    dots = 1  # keep the results of matrix multiplications and of attention: norms and activations are made again
    names = 2  # keep attention's and the MLP's outputs
    offload = 3  # as `names`, kept in host memory
    full = 4  # keep only the layer's input


class Kernel(Enum):
    """Attention kernel; `auto` takes the fastest that the backend and the model allow."""

    auto = 0
    xla = 1
    cudnn = 2
    splash = 3


class ContextAttention(Enum):
    """Attention where mesh.context splits the sequence."""

    ring = 0  # keys and values go round
    all_to_all = 1  # heads are dealt out instead of places; with any kernel


class DType(Enum):
    """Compute dtype; parameters are always float32. `auto`: bfloat16 on accelerators, float32 on CPU."""

    auto = 0
    float32 = 1
    bfloat16 = 2


class LinearDType(Enum):
    """What the operands of linear layers are rounded to."""

    same = 0  # the compute dtype
    float8 = 1  # e4m3, gradients e5m2, with a scale an array (Micikevicius et al. 2022); sums and results as ever


@dataclass
class ModelConfig(Section):
    """Any model: one transformer, or several (CLIP's towers)."""

    section: ClassVar[str] = "model"
    head_keys: ClassVar[tuple[str, ...]] = ()  # which say what heads there are: they may differ from init_from's

    def towers(self) -> "dict[str, TransformerConfig]":
        """The transformers it is made of, by the prefix of their keys."""
        return {}

    @property
    def has_dropout(self) -> bool:
        """Whether training needs randomness."""
        return any(part.dropout > 0 for part in self.towers().values())


@dataclass
class TransformerConfig(ModelConfig):
    """What a stack of blocks is told."""

    vocab_size: int = key(0, "rows of the embedding table; 0 takes the tokenizer's size", at_least=0)
    num_layers: int = key(12, "blocks in the stack (of the encoder, where there is one)", at_least=1)
    num_heads: int = key(12, "query heads", at_least=1)
    num_kv_heads: int = key(0, "key/value heads: 0 = num_heads (MHA), 1 = MQA, between = GQA", at_least=0)
    head_dim: int = key(0, "size of a head; 0 = embed_dim / num_heads", at_least=0)
    embed_dim: int = key(768, "width of the residual stream", at_least=1)
    mlp_dim: int = key(0, "hidden width of the MLP (of each expert); 0 = 4 * embed_dim", at_least=0)
    max_seq_len: int = key(1024, "longest sequence; the rows of the table when position=learned", at_least=1)
    dtype: DType = key(DType.auto, "compute dtype; parameters stay float32")
    linear_dtype: LinearDType = key(
        LinearDType.same, "of the operands of the layers' linear layers while training; float8: for GPUs since Hopper"
    )
    remat: Remat = key(Remat.dots, "what the backward pass keeps of each layer", changes_results=False)
    scan_layers: bool = key(
        True, "scan over stacked layers: compile time does not grow with depth", changes_results=False
    )
    microbatches: int = key(
        0,
        "with mesh.stage: micro-batches in the pipeline; 0 = four a stage, or the most below that fit",
        at_least=0,
        changes_results=False,
    )
    rounds: int = key(1, "with mesh.stage: times a micro-batch goes round the stages; 1 = GPipe, more = circular",
                      at_least=1, changes_results=False)  # fmt: skip
    attention: Kernel = key(Kernel.auto, "attention kernel", changes_results=False)
    context_attention: ContextAttention = key(
        ContextAttention.ring, "attention over a sequence split by mesh.context", changes_results=False
    )
    dropout: float = key(0.0, "dropout of embeddings and of each sub-layer's output", at_least=0.0, at_most=0.99)
    init_std: float = key(0.02, "standard deviation of initial weights; 0 = 1/sqrt(fan_in)", at_least=0.0)
    residual_init: ResidualInit = key(ResidualInit.scaled, "initial scale of projections into the residual stream")

    block: str = key("", "a block of your own, as module:Class with the signature of lmkit.nn.block:Block; '' = that")
    position: Position = key(Position.rope, "how tokens learn their place")
    rope_theta: float = key(10_000.0, "base wavelength of rotary positions", at_least=1.0)
    rope_local_theta: float = key(0.0, "the same for layers with a window; 0 = rope_theta (Gemma 3)", at_least=0.0)
    rope_scaling: RopeScaling = key(
        RopeScaling.none, "reach beyond the trained length; in windowed layers only where rope_local_theta=0"
    )
    rope_factor: float = key(1.0, "how many times longer, with rope_scaling", at_least=1.0)
    rope_original_len: int = key(8192, "with llama3: the length it was trained on", at_least=1)
    rope_low_freq: float = key(1.0, "with llama3: periods in that length below which all is scaled", at_least=0.0)
    rope_high_freq: float = key(4.0, "with llama3: periods in that length above which nothing is", at_least=0.0)
    norm: Norm = key(Norm.rmsnorm, "kind of normalisation")
    norm_order: NormOrder = key(NormOrder.pre, "where each sub-layer is normalised: pre, post, both")
    norm_eps: float = key(1e-5, "added to the variance", at_least=0.0)
    norm_offset: float = key(0.0, "added to the norm's learned scale, which starts at 1 minus it (Gemma: 1)")
    activation: Activation = key(Activation.silu, "non-linearity of the MLP")
    gated: bool = key(False, "gated MLP: activation(gate) * up (SwiGLU with silu)")
    bias: bool = key(False, "biases in all linear layers and layer norms")
    qkv_bias: bool = key(False, "biases in the query, key and value projections only (Qwen 2)")
    key_bias: bool = key(True, "where there are biases: in the key projection too (Whisper: false)")
    qk_norm: bool = key(False, "RMS-normalise queries and keys per head (Qwen 3, Gemma 3)")
    attention_scale: float = key(0.0, "scale of the attention scores; 0 = 1/sqrt(head size)", at_least=0.0)
    attention_softcap: float = key(0.0, "cap * tanh(scores / cap); 0 = off (Gemma 2: 50)", at_least=0.0)
    sliding_window: int = key(
        0, "positions seen in windowed layers: the last so many, or without causality half on each side; 0 = all",
        at_least=0,
    )  # fmt: skip
    global_every: int = key(0, "with a window: one layer in so many sees all positions; 0 = none does", at_least=0)
    global_first: int = key(-1, "the first layer (0-based) that does; -1 = the last of each group", at_least=-1)

    num_experts: int = key(0, "experts of the mixture in place of the MLP; 0 = a plain MLP", at_least=0)
    experts_per_token: int = key(2, "experts that each token goes to, the best by the router", at_least=1)
    renormalize_experts: bool = key(True, "their weights sum to one (Mixtral), instead of their share of all")
    shared_experts: int = key(
        0, "beside them an MLP of so many experts' width, which every token meets (DeepSeekMoE)", at_least=0
    )
    capacity_factor: float = key(
        0.0, "room of an expert in each row over an even share of it; later tokens are dropped; 0 = none is dropped",
        at_least=0.0,
    )  # fmt: skip
    balance_loss: float = key(
        0.0, "weight of the loss that evens out the experts' load (Switch: 0.01); 0 where experts are trained already",
        at_least=0.0,
    )  # fmt: skip
    router_z_loss: float = key(
        0.0, "weight of log(Z)^2 of the router, keeps its logits small (ST-MoE: 0.001)", at_least=0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head_dim and self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.embed_dim={self.embed_dim} is not divisible by model.num_heads={self.num_heads}: set "
                f"model.head_dim, or embed_dim={self.embed_dim // self.num_heads * self.num_heads or self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not divisible by model.num_kv_heads={self.num_kv_heads}: "
                f"choose one of {[k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]}"
            )
        if self.position is Position.rope and self.head_size % 2:
            raise ConfigError(f"model.head_dim={self.head_size} is odd: rotary positions need an even head size")
        if self.num_experts and self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"model.experts_per_token={self.experts_per_token} of model.num_experts={self.num_experts}: "
                f"set experts_per_token={self.num_experts} or less"
            )
        for name in ("shared_experts", "capacity_factor", "balance_loss", "router_z_loss"):
            if getattr(self, name) and not self.num_experts:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} with model.num_experts=0: there is no mixture; set "
                    f"model.num_experts, or model.{name}=0"
                )
        if self.global_every and self.global_first >= self.global_every:
            first, every = self.global_first, self.global_every
            raise ConfigError(
                f"model.global_first={first} with model.global_every={every}: one layer in {every} sees all positions, "
                f"so the first that does is one of 0 to {every - 1}; set model.global_first={first % every}"
            )
        if self.attention_softcap and self.position is Position.relative:
            raise ConfigError(
                f"model.attention_softcap={self.attention_softcap} with model.position=relative: no model caps scores "
                f"that have a bias of distance; set model.attention_softcap=0, or another position"
            )
        if self.num_experts and self.bias:
            raise ConfigError("model.bias=true with model.num_experts: experts have no biases; set model.bias=false")

    def towers(self) -> "dict[str, TransformerConfig]":
        return {"model": self}

    def stacks(self) -> dict[str, int]:
        """The layers of each stack that mesh.stage cuts, by what says how many."""
        return {"num_layers": self.num_layers}

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_size(self) -> int:
        return self.mlp_dim or 4 * self.embed_dim

    def window_of(self, layer: int) -> int:
        """The window of a layer (0-based); 0 where it sees everything."""
        if self.global_every and (layer - self.global_first) % self.global_every == 0:
            return 0
        return self.sliding_window


def again(name: str, default: Any) -> Any:
    """A key of TransformerConfig with a family's own default."""
    (field,) = [field for field in dataclasses.fields(TransformerConfig) if field.name == name]
    return dataclasses.field(default=default, metadata=field.metadata)
