"""A key that is set and would change nothing is refused, with what it needs."""

import dataclasses

import pytest

from lmkit.config import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.effects import _MODEL_NEEDS, _NEEDS, SET, UNSET, Need
from lmkit.config.entry import compose
from lmkit.config.entry.keys import all_keys_of
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of
from lmkit.config.sections.families import MODEL_SCHEMAS

BERT = ["model=bert", "data.seq_len=64"]
CLASSES = [*BERT, "objective=classify", "data=records", "data.paths=[x.jsonl]"]
NUMBERS = [*BERT, "objective=regress", "data=records", "data.paths=[x.jsonl]"]
SOUNDS = ["model=whisper_tiny", "objective=seq2seq", "data=records"]
PAIRS = ["model=clip_vit_b32", "objective=contrastive", "data.seq_len=64"]
IMAGES = ["model=vit", "objective=classify", "data=digits"]


@pytest.mark.parametrize(("words", "message"), [
    (["optim.decay_share=0.5"], "optim.decay_share=0.5 has no effect with optim.schedule=cosine: it needs optim."
                                "schedule=wsd; set that, or optim.decay_share=0.2 (its default)"),
    (["optim.schedule=constant", "optim.final_ratio=0"], "needs optim.schedule=cosine or linear or wsd"),
    (["optim.momentum=0.9"], "optim.momentum=0.9 has no effect with optim.kind=adamw"),
    (["optim=sgd", "optim.beta1=0.5"], "optim.beta1=0.5 has no effect with optim.kind=sgd"),
    (["optim.weight_decay=0", "optim.decay=[matrix, vector]"], "optim.decay=['matrix', 'vector'] has no effect"),
    ([*CLASSES, "objective.z_loss=1e-4"], "objective.z_loss=0.0001 has no effect with objective.kind=classify"),
    ([*NUMBERS, "objective.label_smoothing=0.1"], "has no effect with objective.kind=regress"),
    ([*PAIRS, "objective.label_smoothing=0.1"], "has no effect with objective.kind=contrastive"),
    (["objective.mask_share=0.3"], "needs objective.kind=masked_lm or span_corruption"),
    (["model.experts_per_token=1"], "model.experts_per_token=1 has no effect with model.num_experts=0"),
    (["model.rope_factor=4"], "model.rope_factor=4.0 has no effect with model.rope_scaling=none"),
    (["model.position=learned", "model.rope_theta=500"], "needs model.position=rope"),
    (["model.global_every=4"], "model.global_every=4 has no effect with model.sliding_window=0"),
    (["model.key_bias=false"], "needs model.bias or model.qkv_bias"),
    (["model.bias=true", "model.qkv_bias=true"], "it needs model.bias left out"),
    ([*PAIRS, "model.vision.vocab_size=9"], "model.vision.vocab_size=9 has no effect with images"),
    ([*IMAGES, "model.max_seq_len=64"], "model.max_seq_len=64 has no effect with images"),
    (["data=text_files", "data.paths=[x]", "data.split=test"], "data.split=test has no effect with data.source=text"),
    (["data.paths=[x]"], "data.paths=['x'] has no effect with data.source=python_stdlib"),
    (["data=text_files", "data.paths=[x]", "+data.mixture={a: {paths: [y]}}"], "needs data.mixture left out"),
    (["data.augment.flip=true"], "data.augment.flip=true has no effect with model=gpt: it needs model=vit or clip"),
    (["data.label_key=x"], "data.label_key=x has no effect with data.source=python_stdlib"),
    ([*CLASSES, "data.clean.exact=true"], "data.clean.exact=true has no effect with objective.kind=classify"),
    (["data.clean.near_ngram=9"], "data.clean.near_ngram=9 has no effect with data.clean.near=0.0"),
    (["tokenizer.path=x.json"], "tokenizer.path=x.json has no effect with tokenizer.kind=bpe: it needs tokenizer.kind"),
    (["lora.alpha=8"], "lora.alpha=8.0 has no effect with lora.rank=0: it needs lora.rank; set that"),
])  # fmt: skip
def test_a_key_without_effect_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_experiment(compose(["run.name=x", *words]))
    assert message in str(caught.value)


@pytest.mark.parametrize("words", [
    ["optim.schedule=wsd", "optim.decay_share=0.5"],
    ["optim=muon", "optim.momentum=0.9", "optim.adam_learning_rate=1e-3"],
    ["model.sliding_window=64", "model.global_every=4", "model.global_first=0", "model.rope_local_theta=100"],
    ["+data.mixture={a: {paths: [y]}, b: {source: hf, paths: [z]}}", "data.split=test"],
    [*CLASSES, "objective.label_smoothing=0.1", "data.pair_key=b"],
    [*IMAGES, "data.augment.flip=true", "data.image_mean=0.1"],
    [*SOUNDS, "data.paths=[x]", "data.target_len=9", "data.audio_key=a"],
])  # fmt: skip
def test_a_key_with_what_it_needs_is_not(words: list[str]) -> None:
    check_experiment(compose(["run.name=x", *words]))


@pytest.mark.parametrize("name", options_of("experiment"))
def test_no_experiment_sets_a_key_without_effect(name: str) -> None:
    check_experiment(compose([f"+experiment={name}"]))


def test_the_table_names_keys_and_values_that_exist() -> None:
    kinds = {name: kind for name, kind, *_ in all_keys_of(Experiment)} | {"model": "gpt|bert|encdec|vit|clip"}

    def check(section: str, need: Need) -> None:
        for name in need.keys.split():
            assert f"{section}.{name}" in kinds
        others = [one if "." in one or one == "model" else f"{section}.{one}" for one in need.other.split("|")]
        assert set(others) <= set(kinds)
        assert set(need.values.split()) - {SET, UNSET} <= {value for one in others for value in kinds[one].split("|")}

    for section, needs in _NEEDS.items():
        for need in needs:
            check(section, need)
    for need in _MODEL_NEEDS:
        check("model", need)


def test_no_number_of_any_section_may_be_nan_or_infinite() -> None:
    """Every float of every section, and of what sections hold."""

    def walk(schema: type, seen: list[str]) -> None:
        for field in dataclasses.fields(schema):
            if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
                walk(field.type, seen)
            elif field.type is float:
                seen.append(field.name)
                for value in (float("nan"), float("inf"), float("-inf")):
                    with pytest.raises(ConfigError, match=f"{field.name}={value}: "):
                        schema(**{field.name: value})

    seen: list[str] = []
    for schema in [Experiment, *MODEL_SCHEMAS.values()]:
        walk(schema, seen)
    assert len(seen) > 50
    with pytest.raises(ConfigError, match="optim.rates.head=nan: give a finite number"):
        compose(["run.name=x", "+optim.rates={head: nan}"])
