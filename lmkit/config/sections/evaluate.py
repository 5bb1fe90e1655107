"""`evaluate`: what a model is judged by, and how sure one can be of it."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Split(Enum):
    """Which part of the data is scored."""

    heldout = 0
    train = 1  # what was learned from: the difference to heldout is what was learned by heart


class Perturb(Enum):
    """What is changed in the texts of an item to see whether the answer changes."""

    typos = 0  # two letters of a word change places, in every tenth word
    case = 1  # capital letters become small ones, and small ones capital
    order = 2  # of choices; of a record's two texts, or of the sentences of its one


@dataclass
class EvaluateConfig(Section):
    """Scores of a model."""

    section: ClassVar[str] = "evaluate"
    changes_results: ClassVar[bool] = False

    tasks: list[str] = key([], "tasks or groups of lm-eval (extra `evals`); [] = what the model's run is judged by")
    include: str = key("", "folder with YAML files of more tasks; their data_files are relative to it")
    download: bool = key(False, "let tasks fetch their data from the Hugging Face hub; false = local and cached data")
    num_fewshot: int = key(-1, "solved examples before each item; -1 = as the task says", at_least=-1)
    limit: int = key(0, "items of each task, or held-out batches of each part of the data; 0 = all", at_least=0)
    batch_size: int = key(0, "items on the devices at a time: no score depends on it; 0 = chosen", at_least=0)
    max_len: int = key(
        0, "tokens of an item; what is longer is cut from the left and counted; 0 = the model's", at_least=0
    )
    chat: bool = key(False, "put items into the model's chat template")
    system_prompt: str = key("", "text before each item; with evaluate.chat the message of the system")
    split: Split = key(Split.heldout, "part of the data that is scored, without tasks")
    beams: int = key(1, "beams of the search that writes texts, for a model with a source; 1 = none", at_least=1)
    resamples: int = key(1000, "bootstrap samples of a confidence interval; 0 = no intervals", at_least=0)
    confidence: float = key(0.95, "of the intervals", at_least=0.5, at_most=0.999)
    compare: list[str] = key([], "models that are compared on the same items, in place of init_from")
    against: str = key("", "a token store that the model learned from: items found in it are told apart")
    against_ngram: int = key(13, "words in a row that an item must share with it to count as found", at_least=3)
    perturb: list[Perturb] = key([], "how many answers change with the wording of an item: typos, case, order")
    out: str = key("", "folder of results.json, samples, receipt and report; '' = in the run, else ./evaluations")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.compare) == 1:
            raise ConfigError(f"evaluate.compare={self.compare}: a comparison needs two models or more")
        for name in ("chat", "system_prompt", "against"):
            if getattr(self, name) and not self.tasks:
                raise ConfigError(f"evaluate.{name} without evaluate.tasks: set evaluate.tasks=[...]")
