"""The bytes of tokens, of every kind of tokenizer, put together are the text; grammars hold for them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers
from weights.test_specials import make

from helpers import params_of
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.data.tokens.vocabulary import train_bpe, train_unigram
from lmkit.interop import save_folder
from lmkit.models import build_model
from lmkit.serve.grammar import Grammars
from lmkit.serve.loading import conversation_of
from lmkit.serve.vocabulary import Vocabulary
from lmkit.weights import Codec, codec_of, open_model

TEXT = 'Ein Wörtchen, "naïve" 東京 {"a": 1}\n\tdef f(x):  return 🙂'


def codec(kind: str) -> Codec:
    if kind == "bytes":
        return codec_of(ByteTokenizer(), sources=False)
    if kind == "bytefallback":  # SentencePiece's
        pieces = ["<unk>", "</s>", *(f"<0x{one:02X}>" for one in range(256)), "▁", "E", "e", "i", "n", "▁E"]
        inner = tokenizers.Tokenizer(
            models.BPE({one: n for n, one in enumerate(pieces)}, [("▁", "E")], byte_fallback=True)
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)  # type: ignore[assignment]
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
        inner.add_special_tokens(["</s>"])
        ends = (1,)
        return Codec(lambda t: inner.encode(t).ids, lambda ids: inner.decode(ids), inner.get_vocab_size(), ends, (),
                     lambda t: inner.encode(t).ids, inner=inner)  # fmt: skip
    config = TokenizerConfig(kind=TokenizerKind[kind], vocab_size=400)
    train = {"bpe": train_bpe, "unigram": train_unigram}[kind]
    return codec_of(train([TEXT * 3, "some words and more words"], config), sources=False)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram", "bytefallback"])
def test_pieces_are_the_text(kind: str) -> None:
    own = codec(kind)
    vocabulary = Vocabulary(own)
    assert b"".join(vocabulary.pieces[one] for one in own.bare(TEXT)).decode() == TEXT
    assert own.end_ids[0] in vocabulary.special
    grammar = Grammars(own, vocabulary, own.vocab_size).regex("Ein (W(?s:.)*|Haus)", "x")
    for token in own.bare(TEXT):
        assert grammar.mask()[token]
        assert grammar.accept(token)
    assert grammar.mask()[own.end_ids[0]]
    fresh = grammar.fresh()
    assert not fresh.mask()[own.end_ids[0]]
    assert not fresh.mask()[own.bare("x")[0]]


def test_a_folders_template_and_special_tokens(tmp_path: Path) -> None:
    """That of tokenizer_config.json, with its own start token; tokenizer.chat_template goes before it."""
    folder = make("llama", tmp_path)
    config = GPTConfig(vocab_size=300, num_layers=1, num_heads=2, embed_dim=16)
    shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    save_folder(tmp_path / "model", config, params, tokenizer=str(folder), fallback=True)
    model = open_model(str(tmp_path / "model"))
    own = model.codec()
    talk = conversation_of(model, own, TokenizerConfig())
    assert talk is not None
    ids = talk.encode([{"role": "user", "content": "hi"}], [])
    assert ids[0] == own.bare("<s>")[0]
    assert ids[-1] == own.bare("</s>")[0]
    none = compose(["run.name=x", "tokenizer.chat_template=none"]).tokenizer
    assert conversation_of(model, own, none) is None
    with pytest.raises(ConfigError, match="not a template"):
        conversation_of(model, own, TokenizerConfig(chat_template="{% for %}"))
