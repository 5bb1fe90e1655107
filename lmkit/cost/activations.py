"""What a layer keeps for its backward pass, and what it needs while that runs, in bytes a device.

t tokens of a device, D width, N and K query and key heads of size H, F hidden width, c bytes of a number in the compute
dtype, all by formula (tests/plan holds them against what jax keeps of the real blocks):

| remat | kept of a layer |
|---|---|
| full | the stream that goes in: c t D |
| names | and attention's result: 2 c t D (of the MLP's only where a norm follows it) |
| offload | as full; what names keeps besides is in host memory |
| dots | and q, k, v, attention's result before its projection, its weights' log-sum, the MLP's inner products:
c t (2 D + (2 N + 2 K) H + (1 or 2) F) + 4 t N |
| none | of each norm three float32 copies of the stream; q, k, v, attention's result, its weights' log-sum;
of the MLP 2 or 4 arrays of width F; the normed stream; a copy of the weights in the compute dtype. With float8
linear layers what goes into them, and those weights, take a byte a number |

The stream is split over `tensor` along the sequence, heads and F are split over it as such; what goes into attention
and the MLP is whole there (Korthikanti et al. 2022, section 4.2). Experts multiply t by those that a token goes to.
"""

from typing import NamedTuple

from lmkit.config.sections.model import ContextAttention, Kernel, LinearDType, NormOrder, Remat, TransformerConfig
from lmkit.nn.blockwise import scores_at_once
from lmkit.nn.forms import expert_block
from lmkit.parallel.expert import buffer_rows

_F32 = 4


class Share(NamedTuple):
    """What a device has of a layer."""

    tokens: float  # of a micro-batch
    tensor: int  # what heads and F are divided by
    stream: int  # what the stream between sub-layers is divided by
    itemsize: int
    flat: bool  # only the batch is split, on a CPU: each linear layer has a flat copy of its input of its own
    attentions: int = 1  # of a layer: 2 with cross-attention
    context: int = 1  # what sequences are divided by
    experts: int = 1  # devices that a layer's experts are split over
    lanes: int = 1  # what the last dim of an array is filled up to a multiple of: 128 on a TPU

    def head(self, part: TransformerConfig) -> int:
        """The room of one head's q, k, v or result: their last dim is its size."""
        return -(-part.head_size // self.lanes) * self.lanes

    def copies(self, part: TransformerConfig) -> float:
        """Of a token that there is room for in what experts compute: without a capacity, of all devices' on each."""
        if part.capacity_factor:
            return part.experts_per_token * part.capacity_factor
        choices, experts = round(self.tokens * part.experts_per_token), max(part.num_experts // self.experts, 1)
        block = expert_block(choices, experts, "tpu" if self.lanes > 1 else "gpu")
        return buffer_rows(choices * self.experts, experts, block) / self.tokens


def kept_bytes(part: TransformerConfig, share: Share) -> float:
    """Of a layer, for the backward pass."""
    stream = share.tokens * part.embed_dim * share.itemsize / share.stream
    late = part.norm_order is not NormOrder.pre
    if part.remat in (Remat.full, Remat.offload):
        return stream
    if part.remat is Remat.names:
        return stream * (1 + share.attentions + late)
    if part.remat is Remat.dots:
        heads = share.attentions * 2 * (part.num_heads + part.kv_heads) * share.head(part)
        inner = part.mlp_size * (1 + part.gated)
        if part.num_experts:  # of each copy of a token, and what its expert gives
            inner = share.copies(part) * (inner + part.embed_dim * share.tensor)
        router = share.tokens * part.num_experts * _F32
        sums = share.attentions * part.num_heads * _F32
        width = share.tokens * ((heads + inner) * share.itemsize + sums) / share.tensor
        return stream * (1 + share.attentions + (late and not part.num_experts)) + width + router
    return share.tokens * sum(_everything(part, share))


def linear_itemsize(part: TransformerConfig, itemsize: int) -> int:
    """Bytes of a number that a linear layer keeps of its operands."""
    return 1 if part.linear_dtype is LinearDType.float8 else itemsize


def offloaded_bytes(part: TransformerConfig, share: Share) -> float:
    """Of a layer, in host memory."""
    if part.remat is not Remat.offload:
        return 0.0
    late = part.norm_order is not NormOrder.pre
    return share.tokens * part.embed_dim * share.itemsize / share.stream * (share.attentions + late)


def _everything(part: TransformerConfig, share: Share) -> tuple[float, float]:
    """Of attention and of the MLP, each with its norm, without remat and but for the weights: bytes a token."""
    norms = 2 if part.norm_order is NormOrder.both else 1
    norm = norms * (3 * part.embed_dim + 2) * _F32 / share.stream
    width, size = part.embed_dim * linear_itemsize(part, share.itemsize), share.itemsize
    heads, keys = part.num_heads * share.head(part), part.kv_heads * share.head(part)
    attention = (2 * heads + 2 * keys) * size + part.num_heads * _F32
    if part.linear_dtype is LinearDType.float8 or (share.flat and share.tensor == 1):
        attention += heads * linear_itemsize(part, size)  # its result once more, for the projection
    if part.qk_norm:
        attention += (3 * (heads + keys) + 2 * (part.num_heads + part.kv_heads)) * _F32
    attention = norm + (3 if share.flat else 1) * width + attention / share.tensor
    inputs = 2 if share.flat and part.gated and not part.num_experts else 1
    return share.attentions * attention, norm + inputs * width + _mlp(part, share)


def _mlp(part: TransformerConfig, share: Share) -> float:
    """Of the MLP or the experts, a token."""
    # the activation's input and the last product's; gated: the other factor and the activation's result, too
    last = share.itemsize if part.num_experts else linear_itemsize(part, share.itemsize)
    inner = part.mlp_size * ((1 + 2 * part.gated) * share.itemsize + last) / share.tensor
    if not part.num_experts:
        return inner
    chosen = share.copies(part)
    # what goes into an expert, what comes out, and its weighted share, and which rows are no choice
    each = inner + part.embed_dim * (3 * share.itemsize + 1)
    return chosen * each + part.embed_dim * _F32 + 2 * part.num_experts * _F32


def working_bytes(
    part: TransformerConfig, share: Share, kernel: Kernel, length: int, platform: str, apart: bool = False
) -> float:
    """While the backward pass of one layer runs, first through the MLP and then through attention: what it makes again,
    and gradients on their way. With remat=full both are made again at the start, since one leads to the other.

    The compilers of GPUs and TPUs join what is elementwise to its neighbours, so that of a norm one float32 copy
    counts, and of the MLP its inner products, their product and the gradients of those; on a TPU the product's own
    gradient is joined, too. On a CPU all that a layer without remat would keep is there as well.
    """
    stream = (2 * share.itemsize + _F32) * part.embed_dim / share.stream
    # what goes into attention and into the MLP; where that is gathered over `tensor`, what waits to be scattered, too
    inputs = (4 if share.stream > 1 and platform != "cpu" else 2) * part.embed_dim * share.itemsize
    width = share.head(part) * share.itemsize / share.tensor
    heads = 2 * (part.num_heads + part.kv_heads) * width  # q, k, v, the result
    scores = _scores(part, share, kernel, length, apart)
    copies = share.copies(part) if part.num_experts else 1
    arrays = 2 * (1 + part.gated) + (0 if part.num_experts else 1 if platform == "tpu" else 2)
    inner = copies * arrays * part.mlp_size * share.itemsize / share.tensor
    if part.num_experts:
        inner += 4 * copies * part.embed_dim * share.itemsize
    attention, mlp = _everything(part, share) if platform == "cpu" else (heads, 0.0)
    if part.remat is Remat.none:
        attention, mlp = 0.0, 0.0  # it is kept, and counted there
    beside = attention if part.remat is Remat.full else 0.0
    return share.tokens * (stream + inputs + max(attention + heads + scores, beside + mlp + inner))


def _scores(part: TransformerConfig, share: Share, kernel: Kernel, length: int, apart: bool) -> float:
    """A token's, of attention in XLA: float32 scores and their gradient, as many as are there at once; in a ring over
    `context` also keys and values that come and go, and float32 gradients. In cuDNN the mask of documents apart, as
    it is compared and as it is added."""
    local, heads = length // share.context, part.num_heads / share.tensor
    if share.context > 1 and part.context_attention is ContextAttention.ring:
        most = max(scores_at_once(local, local), scores_at_once(local, local // 2, cut=False))
        width = share.head(part) / share.tensor
        moving = 4 * part.kv_heads * (share.itemsize + _F32) + part.num_heads * _F32
        return 2 * _F32 * heads * most / local + moving * width
    if kernel is Kernel.cudnn and apart:
        return (1 + share.itemsize) * length
    return 2 * _F32 * heads * scores_at_once(length, length) / length if kernel is Kernel.xla else 0.0
