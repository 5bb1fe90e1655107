"""Model sections. A family's schema lists what its blocks can do; `conf/model/` holds the presets."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Position(Enum):
    """How a token learns its place."""

    rope = 0
    learned = 1
    none = 2


class Norm(Enum):
    """Normalisation of the residual stream."""

    rmsnorm = 0
    layernorm = 1


class Activation(Enum):
    """Non-linearity of the MLP. `relu2` is the squared ReLU (So et al. 2021, Primer, section 4.1)."""

    gelu = 0
    gelu_tanh = 1
    silu = 2
    relu = 3
    relu2 = 4


class ResidualInit(Enum):
    """Initial scale of the projections that write to the residual stream."""

    scaled = 0  # std / sqrt(2 * layers): GPT-2 (Radford et al. 2019, section 2.3)
    zero = 1  # every block starts as the identity
    plain = 2  # like any other matrix


class Remat(Enum):
    """What the backward pass keeps of a layer, from most memory to least."""

    none = 0  # keep everything
    dots = 1  # keep the results of matrix multiplications
    names = 2  # keep attention's and the MLP's outputs
    offload = 3  # as `names`, kept in host memory
    full = 4  # keep only the layer's input


class Kernel(Enum):
    """Attention kernel; `auto` takes the fastest that the backend and the model allow."""

    auto = 0
    xla = 1
    cudnn = 2
    splash = 3


class DType(Enum):
    """Compute dtype; parameters are always float32. `auto`: bfloat16 on accelerators, float32 on CPU."""

    auto = 0
    float32 = 1
    bfloat16 = 2


@dataclass
class ModelConfig(Section):
    """What every family shares."""

    section: ClassVar[str] = "model"

    vocab_size: int = key(0, "rows of the embedding table; 0 takes the tokenizer's size", at_least=0)
    num_layers: int = key(12, "blocks in the stack", at_least=1)
    num_heads: int = key(12, "query heads", at_least=1)
    num_kv_heads: int = key(0, "key/value heads: 0 = num_heads (MHA), 1 = MQA, between = GQA", at_least=0)
    head_dim: int = key(0, "size of a head; 0 = embed_dim / num_heads", at_least=0)
    embed_dim: int = key(768, "width of the residual stream", at_least=1)
    mlp_dim: int = key(0, "hidden width of the MLP; 0 = 4 * embed_dim", at_least=0)
    max_seq_len: int = key(1024, "longest sequence; the rows of the table when position=learned", at_least=1)
    dtype: DType = key(DType.auto, "compute dtype; parameters stay float32")
    remat: Remat = key(Remat.none, "what the backward pass keeps of each layer")
    scan_layers: bool = key(True, "scan over stacked layers: compile time does not grow with depth")
    attention: Kernel = key(Kernel.auto, "attention kernel")
    dropout: float = key(0.0, "dropout of embeddings and of each block's outputs", at_least=0.0, at_most=0.99)
    init_std: float = key(0.02, "standard deviation of initial weights; 0 = 1/sqrt(fan_in)", at_least=0.0)
    residual_init: ResidualInit = key(ResidualInit.scaled, "initial scale of projections into the residual stream")

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

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_size(self) -> int:
        return self.mlp_dim or 4 * self.embed_dim


@dataclass
class GPTConfig(ModelConfig):
    """Decoder-only models: GPT-2, GPT-3, Llama, Qwen, Gemma by configuration alone."""

    position: Position = key(Position.rope, "rotary or learned absolute positions, or none")
    rope_theta: float = key(10_000.0, "base wavelength of rotary positions", at_least=1.0)
    rope_local_theta: float = key(0.0, "the same for layers with a window; 0 = rope_theta (Gemma 3)", at_least=0.0)
    norm: Norm = key(Norm.rmsnorm, "normalisation before each sub-layer and at the end")
    norm_eps: float = key(1e-5, "added to the variance", at_least=0.0)
    norm_offset: float = key(0.0, "added to the norm's learned scale, which starts at 1 minus it (Gemma: 1)")
    post_norm: bool = key(False, "normalise each sub-layer's output too (Gemma 2)")
    activation: Activation = key(Activation.silu, "non-linearity of the MLP")
    gated: bool = key(False, "gated MLP: activation(gate) * up (SwiGLU with silu)")
    bias: bool = key(False, "biases in all linear layers and layer norms")
    qkv_bias: bool = key(False, "biases in the query, key and value projections only (Qwen 2)")
    qk_norm: bool = key(False, "RMS-normalise queries and keys per head (Qwen 3, Gemma 3)")
    tie_embeddings: bool = key(False, "the head is the embedding table")
    embed_scale: bool = key(False, "multiply embeddings by sqrt(embed_dim) (Gemma)")
    attention_scale: float = key(0.0, "scale of the attention scores; 0 = 1/sqrt(head size)", at_least=0.0)
    sliding_window: int = key(0, "positions each one sees in windowed layers, itself included; 0 = all", at_least=0)
    global_every: int = key(0, "with a window: every n-th layer sees all positions; 0 = none does", at_least=0)
    attention_softcap: float = key(0.0, "cap * tanh(scores / cap); 0 = off (Gemma 2: 50)", at_least=0.0)
    logit_softcap: float = key(0.0, "cap * tanh(logits / cap); 0 = off (Gemma 2: 30)", at_least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is Position.rope and self.head_size % 2:
            raise ConfigError(f"model.head_dim={self.head_size} is odd: rotary positions need an even head size")

    def window_of(self, layer: int) -> int:
        """The window of a layer (0-based); 0 where it sees everything."""
        if self.global_every and (layer + 1) % self.global_every == 0:
            return 0
        return self.sliding_window
