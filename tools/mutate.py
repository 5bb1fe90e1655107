"""Whether the tests notice mistakes: those of tools/mutations.toml, one at a time, each in a copy of the working tree.

    python tools/mutate.py               # all of them; the result goes to tools/mutations_result.json
    python tools/mutate.py --resume      # continue a run that was interrupted
    python tools/mutate.py --only 3,17   # a few; no result is kept
    python tools/mutate.py --rest        # where the nearest tests pass, run the rest of the fast suite, too
    python tools/mutate.py --list

tools/mutations.toml has for each mutation its file, the old text (which must occur exactly once), the new text, and the
nearest tests. All named tests must pass on the unmutated copy first. A mutation is caught when a test fails; an error
in collection does not count. The exit status is 1 when more than one in twenty is missed (with --only: any).
"""

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from lmkit.console import console, duration

ROOT = Path(__file__).resolve().parent.parent
LIST, RESULT = ROOT / "tools" / "mutations.toml", ROOT / "tools" / "mutations_result.json"
OWN_TEST = "tests/tools/test_mutate.py"  # compares the list with the files: it would fail on every mutation
ALLOWED = 1 / 20  # may be missed
LIMIT_S, REST_LIMIT_S = 1800.0, 4 * 3600.0
PASSED, FAILED = 0, 1  # exit statuses of pytest


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One change of one file, and the tests that should notice it."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def read_list(path: Path) -> list[Mutation]:
    """The mutations of a TOML file, in order."""
    entries = tomllib.loads(path.read_text())["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def stale(mutations: list[Mutation], root: Path) -> list[str]:
    """What is wrong with each mutation whose old text does not occur exactly once in its file."""
    problems = []
    for mutation in mutations:
        path = root / mutation.file
        times = path.read_text().count(mutation.old) if path.is_file() else -1
        if times != 1:
            found = "there is no such file" if times < 0 else f"its old text occurs {times} times, not once"
            problems.append(f"{mutation.what}: {mutation.file}: {found}")
    return problems


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def copy_tree(root: Path, to: Path) -> None:
    """Copy all files that git tracks or would add."""
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def compiled_programs(temporary: Path) -> Path:
    """The cache of compiled programs that tests/conftest.py makes in a temporary folder."""
    return temporary / f"lmkit-tests-{os.getuid()}" / "xla"


@dataclasses.dataclass
class Copy:
    """A copy of the tree in which tests run. Stores and layouts that a mutation has written are used by no other."""

    work: Path
    runs: int = 0

    @property
    def tree(self) -> Path:
        return self.work / "tree"

    def write(self, file: str, text: str) -> None:
        """Replace a file, and its bytecode: Python compares times in whole seconds."""
        (self.tree / file).write_text(text)
        Path(importlib.util.cache_from_source(str(self.tree / file))).unlink(missing_ok=True)

    def pytest(self, *words: str, limit_s: float = LIMIT_S) -> tuple[int | None, str]:
        """The exit status, None past the time limit, and what pytest printed."""
        self.runs += 1
        temporary = self.work / str(self.runs)
        programs, shared = compiled_programs(temporary), compiled_programs(Path(tempfile.gettempdir()))
        programs.parent.mkdir(parents=True)
        shared.mkdir(parents=True, exist_ok=True)
        programs.symlink_to(shared)  # their names are hashes of the programs, so mutations do not meet
        kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        env = {**kept, "PYTHONPATH": str(self.tree), "TMPDIR": str(temporary), "COLUMNS": "200"}
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "-n", "0", "-p", "no:cacheprovider", *words]
        try:
            return run(command, self.tree, env, limit_s)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def run(command: list[str], cwd: Path, env: dict[str, str], limit_s: float) -> tuple[int | None, str]:
    """Exit status (None past the limit) and output of a command, which leaves no process behind."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def verdict(status: int | None, output: str) -> tuple[bool, str]:
    """Whether a test failed, and the first that did or why none did."""
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
    if status == FAILED and failed:
        return True, failed[1]
    if status == PASSED:
        return False, "all passed"
    return False, f"no test failed: {f'over {LIMIT_S:.0f} s' if status is None else f'pytest exit status {status}'}"


def attempt(copy: Copy, mutation: Mutation, rest: bool) -> dict[str, Any]:
    """Mutate, run the nearest tests and perhaps the rest, and put the file back."""
    began, original = time.perf_counter(), (copy.tree / mutation.file).read_text()
    copy.write(mutation.file, original.replace(mutation.old, mutation.new))
    try:
        caught, by = verdict(*copy.pytest("-x", *mutation.tests))
        if not caught and by == "all passed" and rest:
            caught, by = verdict(*copy.pytest("-x", f"--ignore={OWN_TEST}", limit_s=REST_LIMIT_S))
    finally:
        copy.write(mutation.file, original)
    seconds = round(time.perf_counter() - began, 1)
    return {"what": mutation.what, "file": mutation.file, "caught": caught, "by": by, "seconds": seconds,
            "digest": mutation.digest}  # fmt: skip


def check_unmutated(copy: Copy, mutations: list[Mutation]) -> None:
    """Exit unless all named tests pass on the copy as it is."""
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    console.print(f"{len(tests)} tests on the unmutated copy")
    began = time.perf_counter()
    status, output = copy.pytest(*tests, limit_s=REST_LIMIT_S)
    if status != PASSED:
        raise SystemExit(f"{output[-3000:]}\nmutate: the unmutated copy does not pass: pytest exit status {status}")
    console.print(f"passed in {duration(time.perf_counter() - began)}")


def facts(root: Path) -> dict[str, str]:
    """What a result belongs to."""
    changed = git(root, "status", "--porcelain", "--", "lmkit", "tests", "conf")
    return {
        "commit": git(root, "rev-parse", "HEAD").strip() + (" with changes" if changed else ""),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
    }


def earlier(path: Path, about: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What is known of mutations, by digest, from a result of the same commit and versions."""
    result = json.loads(path.read_text()) if path.is_file() else {}
    same = all(result.get(key) == value for key, value in about.items())
    return {entry["digest"]: entry for entry in result["mutations"]} if same else {}


def save(path: Path, about: dict[str, str], entries: list[dict[str, Any]]) -> None:
    totals = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **about,
        "seconds": round(sum(entry["seconds"] for entry in entries)),
        "caught": sum(entry["caught"] for entry in entries),
        "of": len(entries),
    }
    path.write_text(json.dumps({**totals, "mutations": entries}, indent=1) + "\n")


def run_all(
    copy: Copy, mutations: list[Mutation], known: dict[str, dict[str, Any]], keep: Any = None, rest: bool = False
) -> list[dict[str, Any]]:
    """An entry a mutation; `keep(entries)` is called after each."""
    todo = [mutation for mutation in mutations if mutation.digest not in known]
    if todo:
        check_unmutated(copy, todo)
    entries, began, done = [], time.perf_counter(), 0
    for number, mutation in enumerate(mutations, 1):
        if mutation.digest in known:
            entries.append(known[mutation.digest])
            continue
        entry = attempt(copy, mutation, rest)
        entries.append(entry)
        done += 1
        left = (time.perf_counter() - began) / done * (len(todo) - done)
        found = "caught" if entry["caught"] else "MISSED"
        console.print(
            f"{number}/{len(mutations)} {found} {entry['seconds']} s  {mutation.what}: {entry['by']}  "
            f"ETA {duration(left)}", markup=False, soft_wrap=True,
        )  # fmt: skip
        if keep is not None:
            keep(entries)
    return entries


def chosen(mutations: list[Mutation], only: str) -> list[Mutation]:
    """Those with the given numbers, from 1; all for an empty string."""
    if not only:
        return mutations
    numbers = [int(word) for word in only.split(",")]
    if wrong := [number for number in numbers if not 1 <= number <= len(mutations)]:
        raise SystemExit(f"mutate: --only {wrong[0]}: there are mutations 1 to {len(mutations)}")
    return [mutations[number - 1] for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="numbers of mutations, as 3,17; no result is kept")
    parser.add_argument("--list", action="store_true", help="print the mutations and their tests")
    parser.add_argument("--resume", action="store_true", help="keep what a run of the same commit has found")
    parser.add_argument("--rest", action="store_true", help="the rest of the fast suite where the nearest tests pass")
    args = parser.parse_args()
    mutations = read_list(LIST)
    if args.list:
        for number, mutation in enumerate(mutations, 1):
            print(f"{number:2} {mutation.file}: {mutation.what}\n   {' '.join(mutation.tests)}")
        return
    if problems := stale(mutations, ROOT):
        raise SystemExit("mutate: tools/mutations.toml is stale:\n" + "\n".join(problems))
    mutations, about = chosen(mutations, args.only), facts(ROOT)
    known = earlier(RESULT, about) if args.resume else {}
    keep = None if args.only else lambda entries: save(RESULT, about, entries)
    with tempfile.TemporaryDirectory(prefix="mutate-") as work:
        copy = Copy(Path(work))
        copy_tree(ROOT, copy.tree)
        entries = run_all(copy, mutations, known, keep, args.rest)
    missed = [entry for entry in entries if not entry["caught"]]
    console.print(f"{len(entries) - len(missed)} of {len(entries)} caught")
    for entry in missed:
        console.print(f"missed: {entry['file']}: {entry['what']}: {entry['by']}", markup=False, soft_wrap=True)
    sys.exit(len(missed) > (0 if args.only else ALLOWED * len(entries)))


if __name__ == "__main__":
    main()
