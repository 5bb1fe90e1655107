"""Tables of vision families: ViT (DeiT too), CLIP."""

from collections.abc import Iterable

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import CLIPConfig, GPTConfig, Pooling, ViTConfig
from lmkit.config.sections.model import Norm, NormOrder, Position
from lmkit.interop.table import (
    BLOCKS,
    WORKED_OUT,
    Family,
    Json,
    Key,
    Layout,
    Row,
    activation,
    dense,
    norm,
    read_labels,
    same,
    write_labels,
)
from lmkit.nn.position import grid_sinusoids

TOWER = same(
    {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "embed_dim": "hidden_size",
     "mlp_dim": "intermediate_size", "norm_eps": "layer_norm_eps"}, norm_eps=1e-5,
)  # fmt: skip
IMAGE = same(
    {"image_size": "image_size", "patch_size": "patch_size", "num_channels": "num_channels"},
    image_size=224, patch_size=16, num_channels=3,
)  # fmt: skip
FORM: Json = {"norm": Norm.layernorm, "norm_order": NormOrder.pre, "position": Position.learned, "bias": True}


def vit_rows(config: ViTConfig) -> Iterable[Row]:
    """ViT's names."""
    layer, taps = "vit.encoder.layer.{layer}.", (config.patch_size,) * 2
    yield Row("class_token", "vit.embeddings.cls_token", pad=2)
    yield Row("input.position.table", "vit.embeddings.position_embeddings", pad=1)
    yield Row("patches.project.kernel", "vit.embeddings.patch_embeddings.projection.weight", Layout.conv, taps=taps)
    yield Row("patches.project.bias", "vit.embeddings.patch_embeddings.projection.bias")
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        yield from dense(f"{BLOCKS}attention.{ours}", f"{layer}attention.attention.{theirs}")
    yield from dense(BLOCKS + "attention.out", layer + "attention.output.dense", ins=2)
    yield from norm(BLOCKS + "attention_join.norm", layer + "layernorm_before")
    yield from dense(BLOCKS + "mlp.up", layer + "intermediate.dense")
    yield from dense(BLOCKS + "mlp.down", layer + "output.dense")
    yield from norm(BLOCKS + "mlp_join.norm", layer + "layernorm_after")
    yield from norm("norm", "vit.layernorm")
    if config.num_classes:
        yield from dense("head", "classifier")


def _tower(ours: str, theirs: str) -> Iterable[Row]:
    blocks, layer = ours + "stack.blocks.", theirs + "encoder.layers.{layer}."
    for part, one in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
        yield from dense(f"{blocks}attention.{part}", f"{layer}self_attn.{one}", ins=1 + (part == "out"))
    yield from norm(blocks + "attention_join.norm", layer + "layer_norm1")
    yield from dense(blocks + "mlp.up", layer + "mlp.fc1")
    yield from dense(blocks + "mlp.down", layer + "mlp.fc2")
    yield from norm(blocks + "mlp_join.norm", layer + "layer_norm2")


def clip_rows(config: CLIPConfig) -> Iterable[Row]:
    """CLIP's names."""
    taps = (config.vision.patch_size,) * 2
    yield Row("text.embed.table", "text_model.embeddings.token_embedding.weight")
    yield Row("text.input.position.table", "text_model.embeddings.position_embedding.weight")
    yield from _tower("text.", "text_model.")
    yield from norm("text.norm", "text_model.final_layer_norm")
    yield Row("vision.class_token", "vision_model.embeddings.class_embedding")
    yield Row("vision.patches.project.kernel", "vision_model.embeddings.patch_embedding.weight", Layout.conv, taps=taps)
    yield Row("vision.input.position.table", "vision_model.embeddings.position_embedding.weight")
    yield from norm("vision.input.norm", "vision_model.pre_layrnorm")
    yield from _tower("vision.", "vision_model.")
    yield from norm("vision.norm", "vision_model.post_layernorm")
    yield from dense("text_projection", "text_projection", bias=False)
    yield from dense("vision_projection", "visual_projection", bias=False)
    yield Row("logit_scale", "logit_scale")


def siglip_rows(config: ViTConfig) -> Iterable[Row]:
    """SigLIP's names, of its image tower alone."""
    place, taps = "vision_model.embeddings.", (config.patch_size,) * 2
    yield Row("patches.project.kernel", place + "patch_embedding.weight", Layout.conv, taps=taps)
    yield Row("patches.project.bias", place + "patch_embedding.bias")
    if config.position is Position.learned:
        yield Row("input.position.table", SIGLIP_POSITIONS)
    yield from _tower("", "vision_model.")
    yield from norm("norm", "vision_model.post_layernorm")
    yield from dense("head", "classifier")


def _read_siglip(theirs: Json) -> Json:
    sines = theirs["vision_config"].get(SINES, False)
    values = SIGLIP.read_config(theirs["vision_config"])
    values = {name: getattr(values, name) for name in {key.ours for key in SIGLIP.keys}}
    return values | {"position": Position.sinusoidal if sines else Position.learned, "num_classes": read_labels(theirs)}


def _write_siglip(config: ViTConfig) -> Json:
    if not config.num_classes:
        raise ConfigError("siglip has no class without a head")
    values = {key.theirs: key.write(getattr(config, WORKED_OUT.get(key.ours, key.ours))) for key in SIGLIP.keys}
    sines = {SINES: True} if config.position is Position.sinusoidal else {}
    vision = {"model_type": SIGLIP.model_type, "vision_use_head": False} | values | sines
    return {"vision_config": vision} | write_labels(config.num_classes)


def _grid(config: ViTConfig) -> dict[str, np.ndarray]:
    """Fixed sines in the place of their table of positions."""
    if config.position is not Position.sinusoidal:
        return {}
    return {SIGLIP_POSITIONS: np.asarray(grid_sinusoids(config.image_size // config.patch_size, config.embed_dim))}


def _read_labels(theirs: Json) -> Json:
    headless = (theirs.get("architectures") or [""])[0] == "ViTModel"
    return {"num_classes": 0 if headless else read_labels(theirs)}


def _write_labels(config: ViTConfig) -> Json:
    return write_labels(config.num_classes)


def _vit_class(config: ViTConfig) -> str:
    return "ViTForImageClassification" if config.num_classes else "ViTModel"


SIGLIP_POSITIONS = "vision_model.embeddings.position_embedding.weight"
SINES = "lmkit_fixed_positions"  # a key of ours in their vision_config: the table of positions holds sines
SIGLIP = Family(
    "siglip_vision_model", ViTConfig, lambda config: "SiglipVisionModel", lambda config: (),
    (*TOWER[:-1], Key("norm_eps", "layer_norm_eps", 1e-6), *IMAGE, activation("hidden_act", "gelu_pytorch_tanh")),
    FORM | {"pooling": Pooling.mean},
)  # fmt: skip
TEXT = Family(
    "clip_text_model", GPTConfig, lambda config: "CLIPTextModel", lambda config: (),
    (*TOWER, activation("hidden_act", "quick_gelu"),
     *same({"vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings"}, vocab_size=49408, max_seq_len=77)),
    FORM | {"tie_embeddings": True},
)  # fmt: skip
VISION = Family(
    "clip_vision_model", ViTConfig, lambda config: "CLIPVisionModel", lambda config: (),
    (*TOWER, IMAGE[0], Key("patch_size", "patch_size", 32), IMAGE[2], activation("hidden_act", "quick_gelu")),
    FORM | {"num_classes": 0, "patch_bias": False, "embed_norm": True, "pooling": Pooling.first},
)  # fmt: skip


def _read_towers(theirs: Json) -> Json:
    return {"text": TEXT.read_config(theirs["text_config"]), "vision": VISION.read_config(theirs["vision_config"])}


def _write_towers(config: CLIPConfig) -> Json:
    size, last = {"projection_dim": config.projection_dim}, config.text.vocab_size - 1
    tokens = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    return {
        "text_config": TEXT.write_config(config.text) | size | tokens,
        "vision_config": VISION.write_config(config.vision) | size,
    }


VISIONS = (
    Family(
        "vit", ViTConfig, _vit_class, vit_rows,
        (*TOWER[:-1], Key("norm_eps", "layer_norm_eps", 1e-12), *IMAGE, activation("hidden_act", "gelu")),
        FORM | {"pooling": Pooling.first}, {"qkv_bias": True}, hooks=((_read_labels, _write_labels),), prefix="vit.",
        ignored=("pooler.dense.weight", "pooler.dense.bias"),
    ),
    Family("siglip", ViTConfig, lambda config: "SiglipForImageClassification", siglip_rows,
           fixed=FORM | {"pooling": Pooling.mean}, must={"architectures": (["SiglipForImageClassification"],)},
           hooks=((_read_siglip, _write_siglip),), made=_grid),
    Family("clip", CLIPConfig, lambda config: "CLIPModel", clip_rows, (Key("projection_dim", "projection_dim", 512),),
           hooks=((_read_towers, _write_towers),)),
)  # fmt: skip
