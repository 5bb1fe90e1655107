"""What counting words is worth: naive Bayes on the words of labelled records, from train.jsonl and heldout.jsonl.

python experiments/spam/words_baseline.py PATH/TO/RECORDS --text subject text --label label
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from lmkit import metrics


def main(arguments: argparse.Namespace) -> None:
    texts, labels = {}, {}
    for split in ("train", "heldout"):
        rows = [json.loads(line) for line in (arguments.records / f"{split}.jsonl").read_text().splitlines()]
        texts[split] = [" ".join(row[field] for field in arguments.text)[: arguments.characters] for row in rows]
        labels[split] = [row[arguments.label] for row in rows]
    counter, names = CountVectorizer(binary=True), sorted(set(labels["train"]))
    model = MultinomialNB().fit(counter.fit_transform(texts["train"]), labels["train"])
    predicted = model.predict(counter.transform(texts["heldout"]))
    numbers = [np.array([names.index(label) for label in some]) for some in (labels["heldout"], predicted)]
    print(len(numbers[0]), "held-out records", metrics.classification(*numbers, names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of train.jsonl and heldout.jsonl")
    parser.add_argument("--text", nargs="+", default=["text"], help="fields with text")
    parser.add_argument("--characters", type=int, help="how much of a text is read, where it is not all")
    parser.add_argument("--label", default="label", help="field with the class")
    main(parser.parse_args())
