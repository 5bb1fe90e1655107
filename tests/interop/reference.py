"""Tiny random models of transformers, with odd settings: what lmkit's models must be equal to.

Imported only where the extra `parity` is installed.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCAB, WIDTH, HEADS, MLP = 97, 48, 4, 80
SMALL = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": MLP}
DECODER = SMALL | {"num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 64}
ENCDEC = {
    "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": MLP, "decoder_ffn_dim": MLP, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "dropout": 0.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
TEXT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 40, "projection_dim": 24}  # fmt: skip
VISION = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": MLP,
          "image_size": 24, "patch_size": 8, "projection_dim": 24}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}

# name: (configuration, model)
MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "gpt2": (
        lambda: hf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=3, n_head=HEADS, n_inner=MLP, n_positions=64,
                              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        hf.GPT2LMHeadModel,
    ),
    "llama": (lambda: hf.LlamaConfig(**DECODER, rms_norm_eps=1e-6), hf.LlamaForCausalLM),
    "llama-biased-scaled-tied": (
        lambda: hf.LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=16,
                               rope_parameters=LLAMA3),
        hf.LlamaForCausalLM,
    ),
    "mistral-windowed": (lambda: hf.MistralConfig(**DECODER, sliding_window=9), hf.MistralForCausalLM),
    "qwen2": (lambda: hf.Qwen2Config(**DECODER, tie_word_embeddings=True), hf.Qwen2ForCausalLM),
    "qwen3": (lambda: hf.Qwen3Config(**DECODER, head_dim=20, tie_word_embeddings=True), hf.Qwen3ForCausalLM),
    "qwen3_moe": (
        lambda: hf.Qwen3MoeConfig(**DECODER, **EXPERTS, head_dim=16, num_experts=5, moe_intermediate_size=56,
                                  norm_topk_prob=False),
        hf.Qwen3MoeForCausalLM,
    ),
    "mixtral": (
        lambda: hf.MixtralConfig(**DECODER, **EXPERTS, num_local_experts=4, sliding_window=None),
        hf.MixtralForCausalLM,
    ),
    "arcee": (lambda: hf.ArceeConfig(**DECODER, head_dim=16, eos_token_id=3, bos_token_id=2), hf.ArceeForCausalLM),
    "apertus": (
        lambda: hf.ApertusConfig(**DECODER, hidden_act="relu2", head_dim=16, rope_parameters=LLAMA3),
        hf.ApertusForCausalLM,
    ),
    "gemma2": (
        lambda: hf.Gemma2Config(**DECODER, head_dim=16, query_pre_attn_scalar=20, sliding_window=8,
                                attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
                                hidden_activation="gelu_pytorch_tanh"),
        hf.Gemma2ForCausalLM,
    ),
    "gemma3": (
        lambda: hf.Gemma3TextConfig(**(DECODER | {"num_hidden_layers": 7}), head_dim=16, query_pre_attn_scalar=20,
                                    sliding_window=8, hidden_activation="gelu_pytorch_tanh"),
        hf.Gemma3ForCausalLM,
    ),
    "bert": (
        lambda: hf.BertConfig(**SMALL, num_hidden_layers=3, max_position_embeddings=64, hidden_dropout_prob=0.0,
                              attention_probs_dropout_prob=0.0),
        hf.BertForPreTraining,
    ),
    "roberta": (
        lambda: hf.RobertaConfig(**SMALL, num_hidden_layers=3, max_position_embeddings=66, type_vocab_size=1,
                                 hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1),
        hf.RobertaForMaskedLM,
    ),
    "modernbert": (
        lambda: hf.ModernBertConfig(**SMALL, num_hidden_layers=5, max_position_embeddings=64, local_attention=12,
                                    pad_token_id=0, bos_token_id=2, eos_token_id=3,
                                    cls_token_id=2, sep_token_id=3),
        hf.ModernBertForMaskedLM,
    ),
    "t5": (
        lambda: hf.T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=20, d_ff=MLP, num_layers=3, num_decoder_layers=2,
                            num_heads=HEADS, dropout_rate=0.0, decoder_start_token_id=0),
        hf.T5ForConditionalGeneration,
    ),
    "t5-v1.1": (
        lambda: hf.T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=20, d_ff=MLP, num_layers=2, num_heads=HEADS,
                            dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                            relative_attention_num_buckets=12, relative_attention_max_distance=20,
                            decoder_start_token_id=0),
        hf.T5ForConditionalGeneration,
    ),
    "bart": (lambda: hf.BartConfig(**ENCDEC), hf.BartForConditionalGeneration),
    "marian": (lambda: hf.MarianConfig(**ENCDEC, scale_embedding=True, activation_function="relu"), hf.MarianMTModel),
    "whisper": (
        lambda: hf.WhisperConfig(**(ENCDEC | {"num_mel_bins": 20, "max_source_positions": 20,
                                              "max_target_positions": 40})),
        hf.WhisperForConditionalGeneration,
    ),
    "vit": (
        lambda: hf.ViTConfig(**{k: v for k, v in VISION.items() if k != "projection_dim"}, num_labels=7,
                             hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        hf.ViTForImageClassification,
    ),
    "siglip": (
        lambda: hf.SiglipConfig(vision_config=VISION | {"vision_use_head": False}, num_labels=7),
        hf.SiglipForImageClassification,
    ),
    "clip": (lambda: hf.CLIPConfig(text_config=TEXT | {"eos_token_id": 96, "bos_token_id": 1, "pad_token_id": 0},
                                   vision_config=VISION, projection_dim=24), hf.CLIPModel),
}  # fmt: skip


def make(name: str) -> Any:
    """The model in float32, with weights far from their small, symmetric initial ones."""
    build, model = MODELS[name]
    torch.manual_seed(0)
    config = build()
    config._attn_implementation = "eager"  # torch's fused kernel has an exponential of 20 bits on some CPUs
    made = model(config).float().eval()
    if name == "t5-v1.1":  # published ones have a head of their own; this version of transformers makes it tied
        made.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(made.lm_head.weight.shape))
    for parameter in made.parameters():
        if parameter.requires_grad:  # not Whisper's fixed sines
            # T5 does not scale its scores: with larger weights its softmax saturates
            parameter.data += (0.1 if name.startswith("t5") else 0.2) * torch.randn(parameter.shape)
    return made
