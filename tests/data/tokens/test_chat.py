"""Chat templates: what is written, which characters are answers, and what a template must not do."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="LOUD: jinja2 is not installed, chat templates are not tested")

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.records import Records
from lmkit.data.prepare_records import prepare_records
from lmkit.data.tokens.chat import TODAY, ChatTemplate, load_chat_template

CHATML = """{%- for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}{% else %}"
    "{{ raise_exception('no role ' + m['role']) }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "assistant?"},
    {"role": "assistant", "content": "yes "},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "so"},
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "</s>", "<s>")


def test_answers_with_what_ends_them() -> None:
    pieces = template(CHATML).pieces(TALK, "here")
    assert [piece.text for piece in pieces if piece.answer] == ["yes <|im_end|>\n", "so<|im_end|>\n"]
    assert "".join(piece.text for piece in pieces) == template(CHATML).render(TALK, "here")
    assert pieces[0].text.endswith("assistant?<|im_end|>\n<|im_start|>assistant\n")
    pieces = template(LLAMA).pieces(TALK, "here")
    assert [piece.text for piece in pieces] == [
        "<s>[INST] assistant? [/INST]",
        " yes</s>",
        "[INST] so [/INST]",
        " so</s>",
    ]
    assert [piece.answer for piece in pieces] == [False, True] * 2


def test_an_answer_that_reads_like_its_header() -> None:
    talk = [TALK[0], {"role": "assistant", "content": "assistant"}]
    assert [p.text for p in template(CHATML).pieces(talk, "here") if p.answer] == ["assistant<|im_end|>\n"]


def test_a_prompt_that_says_more_than_the_message() -> None:
    thinking = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
    thinking += "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    assert [p.text for p in template(thinking).pieces(TALK, "here") if p.answer] == ["yes ;", "so;"]


def test_without_a_prompt_of_its_own_the_header_is_no_answer() -> None:
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    assert [p.text for p in template(plain).pieces(TALK, "here") if p.answer] == ["yes ;", "so;"]
    first = [{"role": "assistant", "content": "hello"}, *TALK]
    assert next(p.text for p in template(plain).pieces(first, "here") if p.answer) == "hello;"


@pytest.mark.parametrize("source", [
    "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }};{% endfor %}",  # shortens what is past
    "{{ messages | length }}{% for m in messages %}{{ m.content }};{% endfor %}",
    "{% for m in messages %}{{ m.content }};{% endfor %}{{ 'two' if messages | length == 2 }}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }};{% endfor %}",  # no answers
])  # fmt: skip
def test_a_template_that_looks_ahead_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=r"file\.jsonl line 3: tokenizer.chat_template writes message \d otherwise"):
        template(source).pieces(TALK, "file.jsonl line 3")


@pytest.mark.parametrize("source", [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% set _ = messages.append({'role': 'x'}) %}",
    "{{ raise_exception('too long') }}",
    "{{ range(10**9) | list }}",
])  # fmt: skip
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ConfigError, match=r"here: tokenizer.chat_template: \w*Error"):
        template(source).render(TALK, "here")


def test_what_templates_expect() -> None:
    source = (
        "{{ strftime_now('%d %b %Y') }}|{{ {'a': '<é>'} | tojson }}|{{ [1] | tojson(indent=1) }}|"
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}|"
        "{% generation %}{{ messages[1].content }}{% endgeneration %}|{{ tools is defined }}"
    )
    text = template(source).render(TALK, "here")
    assert text == '01 Jan 2025|{"a": "<é>"}|[\n 1\n]|13|yes |False'
    assert datetime.datetime(2025, 1, 1) == TODAY


def test_mistakes(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="not a template: line 2"):
        template("fine\n{% for %}")
    with pytest.raises(ConfigError, match=r"cannot read .*none\.jinja"):
        load_chat_template(TokenizerConfig(chat_template=str(tmp_path / "none.jinja")))
    assert load_chat_template(TokenizerConfig()) is None
    monkeypatch.setitem(__import__("sys").modules, "jinja2.sandbox", None)
    with pytest.raises(ConfigError, match=r"needs jinja2: pip install 'lmkit\[chat\]'"):
        template("x")


def test_a_batch_of_conversations(tmp_path: Path) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": TALK, "n": n}) + "\n" for n in range(12)))
    config = DataConfig(
        source=Source.records, paths=[str(tmp_path / "a.jsonl")], seq_len=150, holdout_every=4,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    model = GPTConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8)

    def first_row(source: str) -> tuple[str, str]:
        tokenizer = TokenizerConfig(kind=TokenizerKind.bytes, chat_template=source)
        data = prepare_records(config, tokenizer, ObjectiveKind.chat, model)
        batch = Records(data.stores, data.weights, data.fields, config, seed=0).train(0, 2, np.arange(2))
        inside, weights = batch["segment_ids"][0] == 1, batch["weights"][0] == 1
        whole = [*batch["inputs"][0][inside], batch["targets"][0][inside][-1]]
        return bytes(i for i in whole if i < 256).decode(), "".join(map(chr, batch["targets"][0][weights]))

    whole, answers = first_row(str(tmp_path / "chatml.jinja"))
    assert whole == template(CHATML).render(TALK, "")
    assert answers == "yes <|im_end|>\nso<|im_end|>\n"
    assert first_row(LLAMA)[1] == " yes<|endoftext|> so<|endoftext|>", "another template is another store"
