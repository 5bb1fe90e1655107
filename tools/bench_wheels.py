"""Gathers the wheels that a machine without a network may lack, for tools/bench_gpu.py --wheels.

    python tools/bench_wheels.py FOLDER --python 3.12          # pip downloads; pure Python is built where need be

The versions are those installed here, which the tests have seen; --package NAME==VERSION adds one.
"""

import argparse
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from speed.records import ROOT

# What an image with jax, flax, optax, orbax and torch usually has not, with what of it those do not bring.
PACKAGES = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "grain", "array-record", "portpicker", "tensorboardX",
            "tokenizers", "tiktoken", "qwix")  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def gather(folder: Path, packages: list[str], python: str) -> list[str]:
    """Downloads each; returns those that could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for package in packages:
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        wheel = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms]
        pure = ["wheel", "--no-deps"]  # of a source distribution without extensions
        for way in ((*wheel, "--dest", str(folder)), (*pure, "--wheel-dir", str(folder))):
            if subprocess.run([*pip, *way, package], capture_output=True).returncode == 0:
                break
        else:
            failed.append(package)
    return failed


def versions() -> list[str]:
    """NAME==VERSION of PACKAGES, as installed here; without a version where one is not."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(name)
    return found


def unpack(wheels: Path, site: Path) -> list[str]:
    """Puts the wheels whose package is not installed, or not as lmkit needs it, into a folder for PYTHONPATH."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = {canonicalize_name(one.name): one.specifier for one in map(Requirement, wanted)}
    used = []
    for wheel in sorted(wheels.glob("*.whl")):
        name = parse_wheel_filename(wheel.name)[0]
        try:
            if name not in needs or metadata.version(name) in needs[name]:
                metadata.version(name)
                continue
        except metadata.PackageNotFoundError:
            pass
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        used.append(wheel.name)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine that they are for")
    parser.add_argument("--package", action="append", default=[], help="one more")
    args = parser.parse_args()
    failed = gather(args.folder, [*versions(), *args.package], args.python)
    for wheel in sorted(args.folder.glob("*.whl")):
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    if failed:
        raise SystemExit(f"bench_wheels: not to be had: {', '.join(failed)}")


if __name__ == "__main__":
    main()
