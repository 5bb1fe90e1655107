"""Five small multiple-choice tasks about Python code, written as lm-eval YAML files with local data.

    python experiments/evaluate_small/make_tasks.py FOLDER [--items 100]

`cloze` and `next_line` are made of the modules that `gpt_small` holds out; `brackets`, `copying` and `arithmetic` are
generated. All is seeded: the same Python version gives the same files.
"""

import argparse
import json
import keyword
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmkit.config.entry import compose
from lmkit.data.sources.corpus import clean_sources

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""
CONTEXT_LINES, CHOICES = 10, 4
PAIRS = {"(": ")", "[": "]", "{": "}"}
Item = dict[str, Any]


def heldout_texts() -> list[str]:
    """The modules that gpt_small never sees."""
    experiment = compose(["+experiment=gpt_small"])
    sources = clean_sources(experiment.data, experiment.prepare).values()
    return [one.text for source in sources for one in source.documents() if source.held_out(one.name)]


def make_item(rng: random.Random, question: str, right: str, wrong: list[str], category: str) -> Item:
    """An item with its choices in a random order."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right), "category": category}


def cloze(rng: random.Random, texts: list[str]) -> Iterator[Item]:
    """Which name of the module stands here: one that was seen in the lines before, or a new one."""
    while True:
        lines = rng.choice(texts).split("\n")
        at = rng.randrange(CONTEXT_LINES, max(len(lines), CONTEXT_LINES + 1))
        places = [m for m in re.finditer(r"[A-Za-z_]\w{3,}", lines[at] if at < len(lines) else "") if m.start() > 4]
        places = [m for m in places if not keyword.iskeyword(m[0])]
        if not places:
            continue
        place = rng.choice(places)
        before = "\n".join([*lines[at - CONTEXT_LINES : at], lines[at][: place.start()]])
        names = sorted(set(re.findall(r"[A-Za-z_]\w{3,}", "\n".join(lines))) - {place[0]} - set(keyword.kwlist))
        if len(names) >= CHOICES:
            seen = "seen" if re.search(rf"\b{place[0]}\b", before) else "new"
            yield make_item(rng, before, place[0], rng.sample(names, CHOICES - 1), seen)


def next_line(rng: random.Random, texts: list[str]) -> Iterator[Item]:
    """Which line of the module comes next; the others have the same indentation where there are enough."""
    while True:
        lines = [line for line in rng.choice(texts).split("\n") if line.strip()]
        if len(lines) < 40:
            continue
        at = rng.randrange(CONTEXT_LINES, len(lines))
        indent = len(lines[at]) - len(lines[at].lstrip())
        alike = sorted({one for one in lines if len(one) - len(one.lstrip()) == indent and one != lines[at]})
        others = alike if len(alike) >= CHOICES else sorted(set(lines) - {lines[at]})
        question = "\n".join(lines[at - CONTEXT_LINES : at]) + "\n"
        yield make_item(rng, question, lines[at], rng.sample(others, CHOICES - 1), f"indent {min(indent, 12)}")


def brackets(rng: random.Random, texts: list[str]) -> Iterator[Item]:
    """Which brackets close what is open."""
    while True:
        depth = rng.randint(2, 4)
        opened = [rng.choice("([{") for _ in range(depth)]
        right = "".join(PAIRS[one] for one in reversed(opened))
        wrong = {"".join(rng.choice(")]}") for _ in range(depth)) for _ in range(40)} - {right}
        if len(wrong) >= CHOICES - 1:
            question = "x = " + "".join(f"{one}{rng.choice('abc')}, " for one in opened)[:-2]
            yield make_item(rng, question, right, rng.sample(sorted(wrong), CHOICES - 1), f"depth {depth}")


def copying(rng: random.Random, texts: list[str]) -> Iterator[Item]:
    """A list is written a second time: which word comes next."""
    while True:
        words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(4, 7))) for _ in range(8)]
        at = rng.randint(2, 7)
        first = "names = [" + ", ".join(f'"{one}"' for one in words) + "]\n"
        again = "names = [" + "".join(f'"{one}", ' for one in words[:at]) + '"'
        others = rng.sample([one for one in words if one != words[at]], CHOICES - 1)
        yield make_item(rng, first + again, words[at], others, f"word {at}")


def arithmetic(rng: random.Random, texts: list[str]) -> Iterator[Item]:
    """Sums and differences of small numbers, after three solved ones."""
    while True:
        rows = [(rng.randint(1, 20), rng.choice("+-"), rng.randint(1, 20)) for _ in range(4)]
        solved = [(a, sign, b, a + b if sign == "+" else a - b) for a, sign, b in rows]
        question = "".join(f"assert {a} {sign} {b} == {c}\n" for a, sign, b, c in solved[:3])
        a, sign, b, c = solved[3]
        wrong = rng.sample([str(c + d) for d in (-10, -3, -2, -1, 1, 2, 3, 10)], CHOICES - 1)
        yield make_item(
            rng, f"{question}assert {a} {sign} {b} == ", str(c), wrong, "sum" if sign == "+" else "difference"
        )


def write_tasks(folder: Path, texts: list[str], count: int) -> None:
    """NAME.yaml and NAME.jsonl of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in (cloze, next_line, brackets, copying, arithmetic):
        name = make.__name__
        items = make(random.Random(name), texts)
        rows = [json.dumps(next(items), ensure_ascii=False) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=100)
    args = parser.parse_args()
    write_tasks(args.folder, heldout_texts(), args.items)
