"""Text on the command line is taken as it stands."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config.entry import compose
from lmkit.config.entry.words import quoted_words

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
plain = texts.filter(lambda text: "${" not in text and (text[:1] not in ("'", '"') or text[:1] != text[-1:]))


@pytest.mark.parametrize("text", [
    "实验一", "v (1)", "josé", "a, b", "a=b", "{x}", "[x]", "x]", "it's", 'say "hi"', "\\", "a\\", 'a\\"', "null",
    "true", "1e5", "", " ", "a\nb", "tab\t", "c:\\d", "100%", "#5", "a:b", "$HOME", "~/runs", "a::b", "*?",
])  # fmt: skip
def test_a_text_value_stands_as_it_is(text: str) -> None:
    experiment = compose([f"run.name={text}", f"run.dir={text}", f"generate.prompt={text}"])
    assert (experiment.run.name, experiment.run.dir, experiment.generate.prompt) == (text, text, text)


@given(plain)
@settings(max_examples=100, deadline=None)
def test_any_text(text: str) -> None:
    (word,) = quoted_words([f"run.name={text}"])
    assert OverridesParser.create().parse_override(word).value() == text


@given(texts)
@settings(max_examples=8, deadline=None)
def test_a_prompt_is_any_text_at_all(text: str) -> None:
    assert compose(["run.name=x", f"generate.prompt={text}"]).generate.prompt == text


@pytest.mark.parametrize(("word", "paths"), [
    ("[/josé/t.txt]", ["/josé/t.txt"]),
    ("[my texts/v (1).txt, b.txt]", ["my texts/v (1).txt", "b.txt"]),
    ("['a, b.txt', c]", ["a, b.txt", "c"]),
    ('["p[1].txt"]', ["p[1].txt"]),
    ("[p[1].txt]", ["p[1].txt"]),
    ("[it's.txt, that's.txt]", ["it's.txt", "that's.txt"]),
    ("[no, yes, 1]", ["no", "yes", "1"]),
    ("my/texts", ["my/texts"]),
    ("实验", ["实验"]),
    ("[]", []),
])  # fmt: skip
def test_lists_of_text(word: str, paths: list[str]) -> None:
    assert compose(["run.name=x", f"data.paths={word}"]).data.paths == paths


def test_what_is_left_to_hydra() -> None:
    words = ["+experiment=gpt_tiny", "optim.learning_rate=1e-3", "~model", "--multirun", "hardware=v5p:8x8x8"]
    assert quoted_words(words) == words
    assert compose(["run.name='a b'"]).run.name == "a b"
    assert compose(["run.name=x", "run.dir=${run.name}/y"]).run.dir == "x/y"
    assert quoted_words(["run.name=a,b", "data.paths=[a],[b]"], sweep=True) == ["run.name=a,b", "data.paths=[a],[b]"]
    assert compose(["run.name=a,b"]).run.name == "a,b"


@given(plain)
@settings(max_examples=8, deadline=None)
def test_a_printed_command_is_read_back(text: str) -> None:
    printed = shlex.join([f"run.name={text}", f"run.dir=/runs/{text}"])
    experiment = compose(shlex.split(printed))
    assert (experiment.run.name, experiment.run.dir) == (text, f"/runs/{text}")
