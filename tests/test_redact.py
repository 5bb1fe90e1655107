"""What is a secret, and what only looks like one."""

import pytest

from lmkit.config.base import keys_of
from lmkit.config.entry.keys import all_keys_of
from lmkit.config.experiment import Experiment, to_plain
from lmkit.redact import is_secret, redact, redact_text, redact_words

SECRETS = {
    "https://me:hunter2@host/a.txt": "https://***@host/a.txt",
    "s3://me:hunter2@host:9000/a": "s3://***@host:9000/a",
    "https://host/a.txt?token=hunter2": "https://host/a.txt?***",
    "https://a.blob.core.windows.net/c/x.txt?sv=2020&sig=hunter2%3D": "https://a.blob.core.windows.net/c/x.txt?***",
    "https://b.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=hunter2": "https://b.s3.amazonaws.com/x?***",
    "https://storage.googleapis.com/x?X-Goog-Signature=hunter2": "https://storage.googleapis.com/x?***",
    "data.paths=[https://me:hunter2@host/a.txt]": "data.paths=[https://***@host/a.txt]",
    "WANDB_API_KEY=hunter2": "WANDB_API_KEY=***",
    "export HF_TOKEN=hunter2; run": "export HF_TOKEN=*** run",
    "env -u X AWS_SECRET_ACCESS_KEY=hunter2 python": "env -u X AWS_SECRET_ACCESS_KEY=*** python",
    "+my.password=hunter2": "+my.password=***",
    "my.password=hunter 2": "my.password=***",
    "db_password: 'hunter2'": "db_password: '***'",
    '+api_key = "hunter2"': '+api_key = "***"',
    '-    "token": "hunter2",': '-    "token": "***",',
    "--password=hunter2 --x": "--password=*** --x",
    "--api-key hunter2": "--api-key ***",
    "hf_abcdefghijklmnopqrstuvwxyz": "***",
    "say ghp_abcdefghijklmnopqrstuvwxyz0123 twice": "say *** twice",
}
PLAIN = [
    "tokenizer.end_token=<|endoftext|>", "tokenizer.mask_token=[MASK]", "train.sample_tokens=20", "end_token: '</s>'",
    "generate.max_new_tokens=5", "objective.chunk_tokens=1024", "tokenizer.special_tokens=[a,b]", "data.text_key=body",
    "https://host/a.txt?page=2", "https://host:8080/a@b.txt", "hub://org/name@main", "gs://bucket/path", "a@b.org",
    "token = self.tokens[0]", "def f(token: str) -> None:", "next_token=7", "MAX_TOKENS=5", "key=value", "KEY=value",
    "the token: a word", "token_id=3", "optim.learning_rate=1e-3", "run.dir=/a b/c",
]  # fmt: skip


@pytest.mark.parametrize("text", list(SECRETS))
def test_secrets_are_hidden(text: str) -> None:
    assert redact_text(text) == SECRETS[text]
    assert redact_text(redact_text(text)) == SECRETS[text]


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert redact_text(text) == text


def test_no_key_of_the_configuration_is_a_secret() -> None:
    assert [name for name, *_ in (*all_keys_of(Experiment), *keys_of(Experiment)) if is_secret(name)] == []
    plain = to_plain(Experiment())
    assert redact(plain) == plain


def test_trees_and_command_lines() -> None:
    tree = {
        "env": {"HF_TOKEN": "x", "N": 3, "token": 7},
        "list": ["a", "https://u:p@h/x"],
        "tokenizer": {"end_token": "x"},
    }
    assert redact(tree) == {
        "env": {"HF_TOKEN": "***", "N": 3, "token": 7}, "list": ["a", "https://***@h/x"],
        "tokenizer": {"end_token": "x"},
    }  # fmt: skip
    words = ["python", "-m", "x", "--api-key", "hunter2", "--steps", "3", "+x.secret=y", "a=b"]
    assert redact_words(words) == ["python", "-m", "x", "--api-key", "***", "--steps", "3", "+x.secret=***", "a=b"]
