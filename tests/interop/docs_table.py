"""The generated tables of docs/models.md: between a pair of markers each, so that the rest is written by hand."""

import functools
import re

import jax
from flax import nnx

from helpers import ROOT
from lmkit.config.entry import compose
from lmkit.config.paths import options_of
from lmkit.models import build_model

PAGE = ROOT / "docs" / "models.md"
# Published numbers of parameters, and where; a round one is a paper's.
PUBLISHED: dict[str, tuple[float, str]] = {
    "gpt2_124m": (124_439_808, "released weights"),
    "gpt2_355m": (354_823_168, "released weights"),
    "gpt2_774m": (774_030_080, "released weights"),
    "gpt2_1558m": (1_557_611_200, "released weights"),
    "gpt3_125m": (125e6, "Brown et al. 2020, table 2.1"),
    "gpt3_350m": (350e6, "the same"),
    "gpt3_760m": (760e6, "the same"),
    "gpt3_1b3": (1.3e9, "the same"),
    "gpt3_2b7": (2.7e9, "the same"),
    "gpt3_6b7": (6.7e9, "the same"),
    "gpt3_13b": (13e9, "the same"),
    "gpt3_175b": (175e9, "the same"),
    "llama3_8b": (8_030_261_248, "released weights"),
    "llama3_70b": (70_553_706_496, "released weights"),
    "llama3_405b": (405_853_388_800, "released weights"),
    "qwen3_0b6": (596_049_920, "released weights"),
    "qwen3_8b": (8_190_735_360, "released weights"),
    "qwen3_30b_a3b": (30_532_122_624, "released weights"),
    "gemma3_1b": (999_885_952, "released weights"),
    "smollm2_135m": (134_515_008, "released weights"),
    "mixtral_8x7b": (46_702_792_704, "released weights"),
    "bert_base": (110_106_428, "released weights, both heads"),
    "bert_large": (336_226_108, "released weights, both heads"),
    "roberta_base": (124_697_433, "released weights, masked-LM head"),
    "modernbert_base": (149_655_232, "released weights, masked-LM head"),
    "transformer_base": (65e6, "Vaswani et al. 2017, table 3"),
    "transformer_big": (213e6, "the same"),
    "t5_small": (60_506_624, "released weights"),
    "t5_base": (222_903_552, "released weights"),
    "t5_large": (737_668_096, "released weights"),
    "t5_3b": (2_851_598_336, "released weights"),
    "t5_11b": (11_307_321_344, "released weights"),
    "bart_base": (139_420_416, "released weights"),
    "whisper_tiny": (37_184_640, "released weights, without the fixed positions (table 1: 39 million)"),
    "whisper_base": (71_825_920, "the same (74 million)"),
    "whisper_small": (240_582_912, "the same (244 million)"),
    "vit_ti16": (5_717_416, "released weights"),
    "vit_s16": (22_050_664, "released weights"),
    "vit_b16": (86_567_656, "released weights"),
    "vit_l16": (304_326_632, "released weights"),
    "clip_vit_b32": (151_277_313, "released weights"),
}
# Presets that have the form of a model in reference.py.
STANDS_FOR = {
    "gpt2": "gpt2_124m gpt2_355m gpt2_774m gpt2_1558m gpt3_125m gpt3_350m gpt3_760m gpt3_1b3 gpt3_2b7 gpt3_6b7 "
    "gpt3_13b gpt3_175b",
    "llama": "smollm2_135m",
    "llama-biased-scaled-tied": "llama3_8b llama3_70b llama3_405b",
    "qwen3": "qwen3_0b6 qwen3_8b",
    "qwen3_moe": "qwen3_30b_a3b",
    "mixtral": "mixtral_8x7b",
    "gemma3": "gemma3_1b",
    "bert": "bert_base bert_large",
    "roberta": "roberta_base",
    "modernbert": "modernbert_base",
    "t5": "t5_small t5_base t5_large t5_3b t5_11b",
    "bart": "bart_base",
    "marian": "transformer_base transformer_big",
    "whisper": "whisper_tiny whisper_base whisper_small",
    "vit": "vit_ti16 vit_s16 vit_b16 vit_l16",
    "clip": "clip_vit_b32",
}
# Round figures are of papers: 3.0 % covers transformer_base, whose exact vocabulary the paper does not give.
ROUNDED = 0.03
BASES = {"gpt", "bert", "encdec", "vit"}  # schemas' own defaults, published by nobody


def presets() -> list[str]:
    return [name for name in options_of("model") if name not in BASES]


@functools.cache
def count(preset: str) -> int:
    """Parameters of a preset, from shapes alone."""
    config = compose(["run.name=x", f"model={preset}"]).model
    shapes = nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.split(shapes)[1]))


def presets_table() -> str:
    rows = ["| preset | parameters | published | difference | source |", "|---|---|---|---|---|"]
    for name, (published, source) in PUBLISHED.items():
        mine = count(name)
        off = "0" if mine == published else f"{100 * (mine / published - 1):+.1f} %"
        rows.append(f"| `{name}` | {mine:,} | {published:,.0f} | {off} | {source} |")
    return "\n".join(rows)


def between(marker: str, text: str | None = None) -> str:
    """What stands between the markers of the page; replaced by `text` where given."""
    page = PAGE.read_text()
    pattern = re.compile(rf"(<!-- {marker} -->\n)(.*?)(<!-- /{marker} -->)", flags=re.DOTALL)
    found = pattern.search(page)
    assert found, f"docs/models.md has no <!-- {marker} -->"
    if text is not None:
        PAGE.write_text(pattern.sub(lambda m: m[1] + text + "\n" + m[3], page))
    return found[2].rstrip("\n")


def write_parity(figures: dict[str, tuple[float, float, float]]) -> None:
    rows = [
        "| tested against | largest logit difference | loss, relative | gradient, relative | presets of that form |",
        "|---|---|---|---|---|",
    ]
    for name, (logits, loss, gradient) in figures.items():
        stands_for = ", ".join(f"`{preset}`" for preset in STANDS_FOR.get(name, "").split())
        rows.append(f"| `{name}` | {logits:.1e} | {loss:.1e} | {gradient:.1e} | {stands_for} |")
    between("parity", "\n".join(rows))


if __name__ == "__main__":
    between("presets", presets_table())
