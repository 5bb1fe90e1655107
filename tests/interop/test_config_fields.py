"""Keys of a config.json: what no table reads and nobody knows is named; what transformers' classes have is known."""

import json
from pathlib import Path
from typing import Any

import pytest
from interop.test_exchange import random_params

from lmkit.config.base import ConfigError
from lmkit.config.entry import run_verb
from lmkit.config.sections.families import GPTConfig
from lmkit.generate.__main__ import ABOUT, READS
from lmkit.interop import load_params, read_config, save_folder
from lmkit.interop.config_fields import Fields, unknown_keys
from lmkit.interop.families import FAMILIES, family_of

SMALL: dict[str, Any] = {"vocab_size": 32, "num_layers": 2, "num_heads": 2, "embed_dim": 16}
LLAMA = GPTConfig(**SMALL, gated=True)


def folder_of(tmp_path: Path, **keys: Any) -> Path:
    save_folder(tmp_path / "out", LLAMA, random_params(LLAMA)[1])
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return path.parent


def test_keys_that_nobody_knows_are_named(tmp_path: Path) -> None:
    """Granite's multipliers, which a Llama does not have; what is off, or says how a text is generated, is no news."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 24]}
    folder = folder_of(
        tmp_path, residual_multiplier=0.22, use_mrope=False, logit_scale=None, attention_dropout=0.1, top_p=0.9,
        _attn_implementation_autoset=True, bos_token_id=[1], rope_parameters=rope, id2label={"7": "x"},
    )  # fmt: skip
    notes: list[str] = []
    load_params(folder, read_config(folder), random_params(LLAMA)[0], notes=notes)
    assert notes == [
        "config.json: lmkit does not know residual_multiplier=0.22, rope_parameters.mrope_section=[16, 24], which may "
        "change the model"
    ]


def test_generate_says_so_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = folder_of(tmp_path, residual_multiplier=0.22)
    plain = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "w0"}}
    plain["model"]["vocab"] = {f"w{number}": number for number in range(32)}  # type: ignore[index]
    plain["pre_tokenizer"] = {"type": "WhitespaceSplit"}  # type: ignore[assignment]
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps(plain | nothing))
    words = [f"init_from={folder}", "generate.prompt=w3 w4", "generate.max_new_tokens=2"]
    assert run_verb("generate", "lmkit.generate.main:generate", ABOUT, words, reads=READS) == 0
    out, err = capsys.readouterr()
    assert "lmkit does not know residual_multiplier=0.22" in err
    assert "residual" not in out


@pytest.mark.parametrize(("family", "keys", "message"), [
    ("bert", {"is_decoder": True}, "is_decoder=True is not supported, only False"),
    ("roberta", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
    ("apertus", {"mlp_bias": True}, "mlp_bias=True is not supported"),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                         "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "rope_type='linear' of sliding_attention is not supported, only default"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}},
     "partial_rotary_factor=0.5 is not supported"),
])  # fmt: skip
def test_keys_that_change_what_a_model_computes_are_refused(family: str, keys: dict[str, Any], message: str) -> None:
    table = next(one for one in FAMILIES if one.model_type == family)
    theirs = {key.theirs: 16 for key in table.keys} | {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    with pytest.raises(ConfigError, match=message):
        table.read_config(theirs | {"model_type": family} | keys)


def test_what_is_looked_at_is_noted() -> None:
    seen: set[str] = set()
    fields = Fields({"a": {"b": {"c": 1}}, "d": 2, "e": 3}, seen)
    assert fields["a"].get("b")["c"] == 1
    assert "d" in fields
    assert (fields | {"f": 4}).get("f") == 4
    assert seen == {"a", "a.b", "a.b.c", "d", "f"}


def test_every_key_of_their_classes_is_known() -> None:
    pytest.importorskip("torch", reason="LOUD: keys are not compared with transformers'; pip install 'lmkit[parity]'")
    from interop.reference import MODELS

    for name, (build, model) in MODELS.items():
        theirs = json.loads(build().to_json_string(use_diff=False)) | {"architectures": [model.__name__]}
        assert unknown_keys(family_of(theirs), theirs, {}) == [], name
