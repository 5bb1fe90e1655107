"""The keys of a config.json: every key is used by its family's table, known to change nothing, or named."""

import fnmatch
from typing import Any

from lmkit.interop.table import Family, Json

# Whatever the family: where a file comes from, how its class runs or was trained, how text is generated. What was
# pruned or quantised shows in the tensors.
_COMMON = """
_name_or_path architectures attn_implementation auto_map cache_implementation chunk_size_feed_forward dtype
finetuning_task gradient_checkpointing id2label is_encoder_decoder label2id model_type num_labels output_attentions
output_hidden_states output_past problem_type pruned_heads quantization_config return_dict tie_encoder_decoder
tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
_attn_implementation* _commit_hash _flash_attn_2_enabled _num_labels *.type *.original_max_position_embeddings
*_token_id *_token_ids *dropout *_pdrop *_dropout_prob *_layerdrop init_std initializer_* *_aux_loss_coef
output_router_logits router_jitter_noise task_specific_params prefix keys_to_ignore_at_inference
bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
exponential_decay_length_penalty force_bos_token_to_be_generated forced_decoder_ids length_penalty max_length
max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
_BART = "add_bias_logits classif_dropout extra_pos_embeddings is_decoder normalize_embedding num_hidden_layers "
_BART += "static_position_embeddings"
_QWEN = "layer_types max_window_layers sliding_window"  # of a window that use_sliding_window=false switches off
_ROPE = "rope_theta rope_scaling"  # where rope_parameters say the same
_BERT = "directionality pooler_*"
_IMAGE = "tie_word_embeddings *_config.tie_word_embeddings"
# Known to change nothing in what lmkit computes of a family: heads that it does not read, training, older names.
HARMLESS: dict[str, str] = {
    "gpt2": "n_ctx summary_*",
    "llama": _ROPE, "mistral": _ROPE, "arcee": _ROPE, "apertus": f"{_ROPE} qk_norm", "mixtral": _ROPE,
    "qwen2": f"{_ROPE} {_QWEN}", "qwen3": f"{_ROPE} {_QWEN}",
    "qwen3_moe": f"{_ROPE} {_QWEN} intermediate_size num_local_experts",
    "gemma2": f"{_ROPE} hidden_act *sliding_window_pattern",
    "gemma3_text": f"{_ROPE} hidden_act *sliding_window_pattern rope_local_base_freq",
    "bert": _BERT, "roberta": _BERT,
    "modernbert": f"{_ROPE} classifier_pooling deterministic_flash_attn global_attn_every_n_layers global_rope_theta "
                  "layer_norm_eps local_rope_theta position_embedding_type reference_compile repad_logits_with_grad "
                  "sparse_pred*",
    "t5": "dense_act_fn is_decoder is_gated_act",
    "bart": _BART, "marian": f"{_BART} decoder_vocab_size",
    "whisper": "apply_spec_augment classifier_proj_size is_decoder mask_* max_position_embeddings median_filter_width "
               "num_hidden_layers use_weighted_layer_sum",
    "vit": f"{_IMAGE} encoder_stride pooler_*",
    "siglip": f"{_IMAGE} text_config *_config.projection_dim *_config.vision_use_head",  # towers, heads beside its own
    "clip": f"{_IMAGE} logit_scale_init_value *_config.projection_dim",
}  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, "", [], {})


class Fields(dict):
    """A config.json that notes which of its keys are looked at, those of objects inside it included."""

    def __init__(self, values: Json, seen: set[str], at: str = ""):
        super().__init__(values)
        self.seen, self.at = seen, at

    def _note(self, name: str, value: Any) -> Any:
        self.seen.add(self.at + name)
        return Fields(value, self.seen, f"{self.at}{name}.") if type(value) is dict else value

    def get(self, name: str, default: Any = None) -> Any:
        return self._note(name, super().get(name, default))

    def __getitem__(self, name: str) -> Any:
        return self._note(name, super().__getitem__(name))

    def __contains__(self, name: object) -> bool:
        self.seen.add(f"{self.at}{name}")
        return super().__contains__(name)

    def __or__(self, other: Json) -> "Fields":  # type: ignore[override]
        return Fields({**self, **other}, self.seen, self.at)


def unknown_keys(family: Family, theirs: Json, tensors: Json) -> list[str]:
    """Keys with their values that the table does not read and lmkit does not know; what is off is not among them."""
    seen: set[str] = set()
    family.read_config(Fields(theirs | {"tensors": tensors}, seen))
    harmless = f"{_COMMON} {HARMLESS.get(family.model_type, '')}".split()

    def unknown(values: Json, at: str) -> list[str]:
        found = []
        for name, value in values.items():
            inside = any(one.startswith(f"{at}{name}.") for one in seen) and not name.endswith(("2id", "2label"))
            if isinstance(value, dict) and inside:
                found += unknown(value, f"{at}{name}.")
            elif f"{at}{name}" not in seen and value not in _OFF and not _matches(name, at, harmless):
                found.append(f"{at}{name}={value!s:.60}")
        return found

    return unknown(theirs, "")


def _matches(name: str, at: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, one) or fnmatch.fnmatchcase(at + name, one) for one in patterns)
