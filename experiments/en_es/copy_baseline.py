"""What a translator that only copies is worth: the English text of each held-out verse, scored as its Spanish one.

python experiments/en_es/copy_baseline.py PATH/TO/verses.jsonl
"""

import sys

from lmkit import metrics
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.records import RecordSource
from lmkit.data.store.records import RecordStore


def main(path: str) -> None:
    config = DataConfig(source=Source.records, paths=[path])
    records = RecordSource(config.source, config.paths, [], config).records()
    held_out = [one.fields for one in records if RecordStore.held_out(one.name, config.holdout_every, config.fold)]
    english, spanish = ([fields[language] for fields in held_out] for language in ("en", "es"))
    print(len(held_out), "verses", metrics.translation(spanish, english))


if __name__ == "__main__":
    main(sys.argv[1])
