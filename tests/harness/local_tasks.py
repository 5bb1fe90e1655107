"""Tasks of lm-eval with data files of their own, as a user writes them."""

import json
import random
from pathlib import Path

CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""
WRITE = """task: write
dataset_path: json
dataset_kwargs: {data_files: {test: write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""
ROLL = """task: roll
dataset_path: json
dataset_kwargs: {data_files: {test: write.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} and {{answer}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
metadata: {version: 1.0}
"""
LETTERS = """task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: pick.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}} A {{choices[0]}} B {{choices[1]}} C {{choices[2]}} D {{choices[3]}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{answer}}"
gen_prefix: "It is"
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""
CHAT = (
    "{{ bos_token }}{% for one in messages %}[{{ one.role }}] {{ one.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "sta", "tri") for b in ("dor", "fen", "gal", "hum", "jix")]


def question(rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def write_tasks(folder: Path, count: int = 24, words: int = 12) -> Path:
    """The tasks pick (four choices), letters (the same, listed in the prompt), write (up to a line end), roll (a whole
    text); and broken ones: gone, empty."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for name in ("pick", "gone", "empty"):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name))
    (folder / "letters.yaml").write_text(LETTERS)
    (folder / "write.yaml").write_text(WRITE)
    (folder / "roll.yaml").write_text(ROLL)
    (folder / "empty.jsonl").write_text("")
    with (folder / "pick.jsonl").open("w") as pick, (folder / "write.jsonl").open("w") as write:
        for number in range(count):
            text, answer = question(rng, words), number % 4
            choices = [question(rng, 1 + number % 3) for _ in range(4)]
            row = {"question": text, "choices": choices, "answer": answer, "category": "ab"[number % 2]}
            pick.write(json.dumps(row) + "\n")
            write.write(json.dumps({"question": text, "answer": choices[answer]}) + "\n")
    return folder
