"""What is generated, and how a token is chosen."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key, unescaped


@dataclass
class GenerateConfig(Section):
    """Text from a model."""

    section: ClassVar[str] = "generate"
    changes_results: ClassVar[bool] = False

    prompt: str = key(
        "", "text to continue; for an encoder-decoder, the source; with audio, what was said before, or names in it. "
        "Taken as it stands, commas and all",
    )  # fmt: skip
    prompts_file: str = key(
        "", "several prompts: the field `prompt` of a .jsonl, .json, .csv, .tsv or .parquet, the lines of another file"
    )
    audio: list[str] = key([], "sound files, for a model that listens; in place of prompts")
    language: str = key("", "of the sounds, by the model's token or in English: <|de|>, de, german; '' = what it hears")
    task: str = key("", "transcribe or translate, for a model that has both; '' = as its files say, else transcribe")
    timestamps: bool = key(
        False, "with audio: segments with their seconds, of files of any length; needs a model that was trained so"
    )
    max_new_tokens: int = key(128, "tokens made for each prompt at most; with timestamps, for each window", at_least=1)
    temperature: float = key(0.7, "what logits are divided by before a token is drawn; 0 = the likeliest", at_least=0.0)
    top_k: int = key(0, "draw from so many likeliest tokens only; 0 = all", at_least=0)
    top_p: float = key(1.0, "draw from the fewest tokens that have this probability together", at_least=0, at_most=1)
    min_p: float = key(0.0, "draw only what is so likely, relative to the likeliest token", at_least=0, at_most=1)
    repetition_penalty: float = key(1.0, "above 1: tokens that are there already become less likely", at_least=0.01)
    num_beams: int = key(1, "beams of a beam search; 1 = none. It needs temperature=0", at_least=1)
    length_penalty: float = key(
        1.0, "with beams: scores are divided by length to this power; above 0 favours long ones"
    )
    early_stopping: bool = key(False, "with beams: stop at num_beams finished ones, without looking for better ones")
    batch_size: int = key(16, "texts made at a time", at_least=1)
    stop: list[str] = key([], "strings that end the text, in which \\n is a line end; they are not shown")
    num_samples: int = key(1, "texts for each prompt; with beams, the so many best", at_least=1)
    out: str = key("", "a .jsonl file for the results: prompt, text, number of tokens, why it ended")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stop = [unescaped(one) for one in self.stop]
        if self.num_beams > 1 and self.temperature:
            raise ConfigError(
                f"generate.num_beams={self.num_beams} with generate.temperature={self.temperature}: beams are not "
                f"drawn but searched; set generate.temperature=0, or generate.num_beams=1"
            )
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            raise ConfigError(
                f"generate.num_samples={self.num_samples} with generate.num_beams={self.num_beams}: there are not so "
                f"many; set generate.num_samples={self.num_beams} or less"
            )
        for name in ("language", "task", "timestamps"):
            if getattr(self, name) and not self.audio:
                raise ConfigError(f"generate.{name}={getattr(self, name)} without generate.audio: leave it out")
        if self.audio and self.prompts_file:
            raise ConfigError(
                f"generate.audio={self.audio} with generate.prompts_file={self.prompts_file}: give "
                f"one of them, or one generate.prompt for all sounds"
            )
        if self.timestamps and (self.stop or self.num_samples > 1):
            raise ConfigError(
                f"generate.timestamps=True with generate.stop={self.stop} and generate.num_samples={self.num_samples}: "
                f"a file has one text, to its end; leave them out"
            )
        if self.prompt and self.prompts_file:
            raise ConfigError(
                f"generate.prompt={self.prompt[:20]!r} with generate.prompts_file={self.prompts_file}: give one of them"
            )
