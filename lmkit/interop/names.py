"""Names of files in a folder of the Hugging Face layout."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "source.spm", "target.spm", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "preprocessor_config.json",
)  # fmt: skip
