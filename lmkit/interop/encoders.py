"""Tables of encoder families: BERT, RoBERTa, ModernBERT."""

from collections.abc import Iterable
from functools import partial

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.model import Norm, NormOrder, Position
from lmkit.interop.decoders import read_layer_types, read_rope, write_layer_types
from lmkit.interop.table import (
    BLOCKS,
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

KEYS = same(
    {"vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
     "embed_dim": "hidden_size", "mlp_dim": "intermediate_size"}
)  # fmt: skip
BERT_KEYS = (
    *KEYS, *same({"type_vocab_size": "type_vocab_size", "norm_eps": "layer_norm_eps"}, norm_eps=1e-12),
    activation("hidden_act", "gelu"),
)  # fmt: skip
BERT: Json = {"position": Position.learned, "norm": Norm.layernorm, "norm_order": NormOrder.post, "bias": True}
DECODES_NOT: Json = {"is_decoder": False, "add_cross_attention": False}  # with it, attention is causal
HEADS = ("pooler", "lm_head", "next_sentence_head")
HEAD_TENSORS = {  # by which a file shows what heads it has, whatever its class says
    "pooler": ("pooler.dense.weight", "classifier.dense.weight"),
    "lm_head": ("predictions.transform.dense.weight", "lm_head.dense.weight", "head.dense.weight"),
    "next_sentence_head": ("seq_relationship.weight",),
}


def _head_keys(by_class: dict[str, tuple[bool, bool, bool]], rows: str = "", tokens: str = ""):
    """The hook that tells which heads there are from the class, and the class from the heads.

    `rows` and `tokens` are the classes with a head for classes on the pooled token, and on every token.
    """
    by_class = by_class | ({rows: (True, False, False), tokens: (False, False, False)} if rows else {})

    def read(theirs: Json) -> Json:
        name = (theirs.get("architectures") or list(by_class))[0]
        if name not in by_class:
            raise ConfigError(f"config.json: architectures [{name}] is not supported, only {', '.join(by_class)}")
        classes = {
            "num_classes": read_labels(theirs) if name in (rows, tokens) else 0,
            "classify_tokens": name == tokens,
        }
        if (tensors := theirs.get("tensors")) is None:
            return dict(zip(HEADS, by_class[name], strict=True)) | classes
        found = {head: any(one.endswith(HEAD_TENSORS[head]) for one in tensors) for head in HEADS}  # files have more
        return found | classes

    def architecture(config: BERTConfig) -> str:
        heads = tuple(getattr(config, name) for name in HEADS)
        for name, has in by_class.items():
            wanted = (name == tokens) if config.classify_tokens else (name == rows)
            if has == heads and wanted == bool(config.num_classes):
                return name
        known = "; ".join(f"{name}: {dict(zip(HEADS, has, strict=True))}" for name, has in by_class.items())
        also = {"num_classes": config.num_classes, "classify_tokens": config.classify_tokens}
        raise ConfigError(
            f"no class of theirs has model heads {dict(zip(HEADS, heads, strict=True)) | also}. There are {known}"
        )

    return architecture, (read, lambda config: write_labels(config.num_classes))


def _norm(ours: str, theirs: str) -> list[Row]:
    """A norm, whose parameters old files call gamma and beta."""
    return [
        Row(f"{ours}.scale", f"{theirs}.weight", also=(f"{theirs}.gamma",)),
        Row(f"{ours}.bias", f"{theirs}.bias", also=(f"{theirs}.beta",)),
    ]


def _layers(prefix: str) -> Iterable[Row]:
    layer = prefix + "encoder.layer.{layer}."
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        yield from dense(f"{BLOCKS}attention.{ours}", f"{layer}attention.self.{theirs}")
    yield from dense(BLOCKS + "attention.out", layer + "attention.output.dense", ins=2)
    yield from _norm(BLOCKS + "attention_join.norm", layer + "attention.output.LayerNorm")
    yield from dense(BLOCKS + "mlp.up", layer + "intermediate.dense")
    yield from dense(BLOCKS + "mlp.down", layer + "output.dense")
    yield from _norm(BLOCKS + "mlp_join.norm", layer + "output.LayerNorm")


def _bert_like(config: BERTConfig, prefix: str, head: str) -> Iterable[Row]:
    yield Row("embed.table", prefix + "embeddings.word_embeddings.weight", also=(head,))
    yield Row("input.position.table", prefix + "embeddings.position_embeddings.weight")
    yield Row("input.type.table", prefix + "embeddings.token_type_embeddings.weight")
    yield from _norm("input.norm", prefix + "embeddings.LayerNorm")
    yield from _layers(prefix)


def bert_rows(config: BERTConfig) -> Iterable[Row]:
    """BERT's names."""
    yield from _bert_like(config, "bert.", "cls.predictions.decoder.weight")
    if config.pooler:
        yield from dense("pooler", "bert.pooler.dense")
    if config.lm_head:
        yield from dense("lm_head.dense", "cls.predictions.transform.dense")
        yield from _norm("lm_head.norm", "cls.predictions.transform.LayerNorm")
        yield Row("lm_head.bias", "cls.predictions.bias", also=("cls.predictions.decoder.bias",))
    if config.next_sentence_head:
        yield from dense("next_sentence", "cls.seq_relationship")
    if config.num_classes:
        yield from dense("classifier", "classifier")


def roberta_rows(config: BERTConfig) -> Iterable[Row]:
    """RoBERTa's names."""
    yield from _bert_like(config, "roberta.", "lm_head.decoder.weight")
    of_rows = config.num_classes and not config.classify_tokens  # then the pooler is the first half of their classifier
    if config.pooler:
        yield from dense("pooler", "classifier.dense" if of_rows else "roberta.pooler.dense")
    if config.num_classes:
        yield from dense("classifier", "classifier.out_proj" if of_rows else "classifier")
    if config.lm_head:
        yield from dense("lm_head.dense", "lm_head.dense")
        yield from _norm("lm_head.norm", "lm_head.layer_norm")
        yield Row("lm_head.bias", "lm_head.bias", also=("lm_head.decoder.bias",))


def modernbert_rows(config: BERTConfig) -> Iterable[Row]:
    """ModernBERT's names; queries, keys and values lie side by side, gate and up too."""
    yield Row("embed.table", "model.embeddings.tok_embeddings.weight", also=("decoder.weight",))
    yield from norm("input.norm", "model.embeddings.norm", bias=False)
    layer = "model.layers.{layer}."
    for blocks, first in (("first.blocks.", 0), (BLOCKS, 1)):
        for number, part in enumerate("qkv"):
            yield Row(f"{blocks}attention.{part}.kernel", layer + "attn.Wqkv.weight", Layout.linear, (number, 3), first)
        yield Row(blocks + "attention.out.kernel", layer + "attn.Wo.weight", Layout.linear, first=first, ins=2)
        for number, part in enumerate(("gate", "up")):
            yield Row(f"{blocks}mlp.{part}.kernel", layer + "mlp.Wi.weight", Layout.linear, (number, 2), first)
        yield Row(blocks + "mlp.down.kernel", layer + "mlp.Wo.weight", Layout.linear, first=first)
        yield Row(blocks + "mlp_join.norm.scale", layer + "mlp_norm.weight", first=first)
    yield Row(BLOCKS + "attention_join.norm.scale", layer + "attn_norm.weight", first=1)
    yield from norm("norm", "model.final_norm", bias=False)
    if config.lm_head:
        yield from dense("lm_head.dense", "head.dense", bias=False)
        yield from norm("lm_head.norm", "head.norm", bias=False)
        yield Row("lm_head.bias", "decoder.bias")


def _read_window(theirs: Json) -> Json:
    if theirs.get("layer_types"):
        return read_layer_types(theirs)
    return {"global_every": theirs.get("global_attn_every_n_layers") or 3, "global_first": 0}


def _write_window(config: BERTConfig) -> Json:
    return (
        write_layer_types(config)
        | {
            "global_attn_every_n_layers": config.global_every or 1,
            "global_rope_theta": config.rope_theta,
            "local_rope_theta": config.rope_local_theta or config.rope_theta,
        }
        | dict.fromkeys(
            ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), config.vocab_size - 1
        )
    )  # theirs are beyond a small vocabulary, and it cannot be loaded so


_bert = _head_keys(
    {
        "BertModel": (True, False, False),
        "BertForMaskedLM": (False, True, False),
        "BertForPreTraining": (True, True, True),
    },
    "BertForSequenceClassification",
    "BertForTokenClassification",
)
_roberta = _head_keys(
    {"RobertaModel": (True, False, False), "RobertaForMaskedLM": (False, True, False)},
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
)
_modern = _head_keys({"ModernBertModel": (False, False, False), "ModernBertForMaskedLM": (False, True, False)})
_positions = Key("max_seq_len", "max_position_embeddings", 512)
ENCODERS = (
    Family("bert", BERTConfig, _bert[0], bert_rows, (*BERT_KEYS, _positions), BERT,
           DECODES_NOT | {"position_embedding_type": "absolute", "tie_word_embeddings": True}, hooks=(_bert[1],),
           prefix="bert."),
    Family(
        "roberta", BERTConfig, _roberta[0], roberta_rows,
        (*BERT_KEYS, Key("max_seq_len", "max_position_embeddings", 514, None, lambda n: n - 2, lambda n: n + 2)),
        BERT | {"position_offset": 2},
        DECODES_NOT | {"position_embedding_type": "absolute", "tie_word_embeddings": True, "pad_token_id": 1},
        hooks=(_roberta[1],), prefix="roberta.",
        ignored=("pooler.dense.weight", "pooler.dense.bias"),  # of which their classifiers make no use
    ),
    Family(
        "modernbert", BERTConfig, _modern[0], modernbert_rows,
        (*KEYS, Key("max_seq_len", "max_position_embeddings", 8192), Key("norm_eps", "norm_eps", 1e-5),
         activation("hidden_activation", "gelu"), Key("sliding_window", "local_attention", 128)),
        {"position": Position.rope, "norm": Norm.layernorm, "norm_order": NormOrder.pre, "bias": False, "gated": True,
         "type_vocab_size": 0},
        {"attention_bias": False, "mlp_bias": False, "norm_bias": False, "classifier_bias": False,
         "decoder_bias": True, "tie_word_embeddings": True, "classifier_activation": "gelu"},
        hooks=((partial(read_rope, default=160_000.0, local_default=10_000.0), lambda config: {}),
               (_read_window, _write_window), _modern[1]),
        prefix="model.",
    ),
)  # fmt: skip
