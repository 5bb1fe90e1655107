"""Fetches Fashion-MNIST (Xiao et al. 2017): 70,000 pictures of clothes, 28 x 28 pixels, in ten classes; 31 MB.

    python experiments/vit_fashion/get_data.py [FOLDER]

FOLDER gets the four .gz files of the Debian package dataset-fashion-mnist. What is there already is verified, not
fetched again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch

PACKAGE = "dataset-fashion-mnist"


def pictures(cache: Path) -> Iterator[tuple[str, bytes]]:
    yield from fetch.deb_files(fetch.debian_package(PACKAGE, cache), "usr/share/datasets/fashion-mnist/")


STUDY = fetch.Study(
    name="vit_fashion",
    packages=f"{PACKAGE} 0.0~git20200523.55506a9-1",
    licence="Expat (MIT), copyright 2017 Zalando SE; source: the Debian package dataset-fashion-mnist",
    results={
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    build=pictures,
    next_commands=["python -m lmkit.train +experiment=vit_fashion 'data.paths=[{data}]'"],
)

if __name__ == "__main__":
    fetch.main(STUDY, __doc__)
