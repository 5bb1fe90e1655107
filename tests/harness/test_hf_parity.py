"""The same log-likelihoods and texts as lm-eval's own `hf` backend, for a folder that both read.

Needs the extras `evals` and `parity`, and accelerate, which that backend imports.
"""

from pathlib import Path
from typing import Any

import jax
import pytest
from harness.local_tasks import CHAT, WORDS, write_tasks

from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.harness.tasks import load_tasks, make_model, run_tasks
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model

LOUD = "LOUD: scores are not compared with lm-eval's hf backend; pip install 'lmkit[evals,parity]' accelerate"
for package in ("lm_eval", "accelerate", "torch"):
    pytest.importorskip(package, reason=LOUD)
hf: Any = pytest.importorskip("transformers", reason=LOUD)

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
         "max_position_embeddings": 256, "initializer_range": 0.15}  # fmt: skip
KINDS = {
    "gpt2": lambda size: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=size, n_positions=256, n_embd=48, n_layer=2, n_head=4, initializer_range=0.15)),
    "llama": lambda size: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=size, num_key_value_heads=2, **SIZES)),
    "gemma": lambda size: hf.Gemma2ForCausalLM(hf.Gemma2Config(
        vocab_size=size, num_key_value_heads=2, head_dim=12, sliding_window=16, attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0, **SIZES)),
}  # fmt: skip


def make_folder(folder: Path, kind: str) -> Path:
    tokenizer = train_bpe([" ".join(WORDS)] * 20, TokenizerConfig(vocab_size=400))
    end = tokenizer.end_id
    hf.set_seed(0)
    model = KINDS[kind](tokenizer.vocab_size).eval()
    ids = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    model.config.update(ids)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_texts_are_those_of_the_hf_backend(kind: str, tmp_path: Path) -> None:
    folder, include = make_folder(tmp_path / "model", kind), write_tasks(tmp_path / "tasks", count=12)
    mine, other = score_both(folder, EvaluateConfig(tasks=["pick", "write", "roll"], include=str(include), resamples=0))
    check_choices(mine["pick"], other["pick"])
    for one, expected in zip(mine["roll"], other["roll"], strict=True):
        assert one["resps"][0][0] == pytest.approx(expected["resps"][0][0], abs=1e-4)
    check_texts(mine["write"], other["write"])


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_those_of_the_hf_backend(chat: bool, tmp_path: Path) -> None:
    """With a system prompt, solved examples, and in a chat template that writes the start token itself."""
    folder, include = make_folder(tmp_path / "model", "llama"), write_tasks(tmp_path / "tasks", count=8, words=3)
    mine, other = score_both(folder, EvaluateConfig(
        tasks=["pick", "letters", "write"], include=str(include), resamples=0, chat=chat, system_prompt="stador",
        num_fewshot=2,
    ))  # fmt: skip
    check_choices(mine["pick"], other["pick"])
    check_choices(mine["letters"], other["letters"])
    check_texts(mine["write"], other["write"])
    assert [one["arguments"][0][0] for one in mine["write"]] == [one["arguments"][0][0] for one in other["write"]]
    prompt = mine["letters"][0]["arguments"][0][0]
    assert prompt.startswith("<|endoftext|>[system] stador\n[user] " if chat else "stador")
    assert prompt.endswith("\n[assistant] It is" if chat else " It is")
    assert prompt.count("It is") == 3


def score_both(folder: Path, config: EvaluateConfig) -> list[dict[str, list[dict[str, Any]]]]:
    """The samples of our model and of lm-eval's."""
    from lm_eval.models.huggingface import HFLM

    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    ours = make_model(open_model(str(folder)), TokenizerConfig(), config, mesh)
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32")
    found = [
        run_tasks(model, load_tasks(config, config.tasks), config, limit=0, seed=0, about={})["samples"]
        for model in (ours, theirs)
    ]
    assert ours.truncated == 0
    return found


def check_choices(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine["arguments"] == other["arguments"]
        for (score, greedy), (right, best) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            assert score == pytest.approx(right, abs=1e-4)
            assert greedy == best


def check_texts(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    texts = [[one["resps"][0][0] for one in samples] for samples in (found, expected)]
    assert texts[0] == texts[1]
    assert any(texts[0])
