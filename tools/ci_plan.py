"""What a run of CI adds to the fast suite: a third of the rest, by the commit's hash, and what a change touches.

    python tools/ci_plan.py sections              # names of this commit's sections, in the order in which they run
    python tools/ci_plan.py slow [--since REV]    # files whose slow tests run: touched ones first, then a third of all
    python tools/ci_plan.py slow --third N        # all files with slow tests, the N-th third of them
    python tools/ci_plan.py every                 # names of all sections
    python tools/ci_plan.py missing               # those with no result at this commit (tools/test_all.json)
    python tools/ci_plan.py age                   # commits since the section that ran longest ago, or "never"
    python tools/ci_plan.py record NAME SECONDS LOG   # keeps the result of a section, from what it printed

A test file is touched where the change has the file itself, or a module that it imports, directly or through one other
module of lmkit. Everything else waits for its turn, and for tools/test_all.sh.
"""

import argparse
import ast
import functools
import json
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "tools" / "test_all.json"
THIRDS = (("newer_python", "compilers"), ("parity", "evals"), ("engines",))  # a section is a function of .ci/run
EVERY = (
    "fast",
    "lint",
    *(name for third in THIRDS for name in third),
    "slow1",
    "slow2",
    "slow3",
)  # of tools/test_all.sh
# Folders whose change runs a section at once, whoever's turn it is.
TOUCHES = {
    "parity": ("lmkit/interop/", "lmkit/models/"),
    "evals": ("lmkit/harness/", "lmkit/evaluate/", "lmkit/serve/"),
    "engines": ("lmkit/prepare/", "lmkit/launch/", "lmkit/data/sources/"),
    "compilers": (
        "lmkit/compiler/",
        "lmkit/plan/",
        "lmkit/cost/",
        "lmkit/core/step.py",
        "lmkit/optim/muon.py",
        "lmkit/nn/forms.py",
    ),
}


def git(*words: str) -> str:
    """The output of a git command in the checkout."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def changed(since: str) -> list[str]:
    """Files that differ from a revision; '' = from the last full run, or from a day ago where there is none."""
    since = since or last_full() or git("rev-list", "-1", "--before=1 day ago", "HEAD")
    return git("diff", "--name-only", since, "HEAD").splitlines() if since else []


def results() -> dict[str, dict]:
    """What is kept of each section: date, commit, seconds, counts."""
    return json.loads(RESULT.read_text()) if RESULT.is_file() else {}


def commits_since(commit: str) -> int | None:
    """How many commits there are after one; None for one that this history does not have."""
    known = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT, capture_output=True)
    return int(git("rev-list", "--count", f"{commit}..HEAD")) if known.returncode == 0 else None


def last_full() -> str:
    """The commit since which everything ran, where this history has it."""
    kept = results()
    ages = {one["commit"]: commits_since(one["commit"]) for one in kept.values()}
    if not set(EVERY) <= kept.keys() or None in ages.values():
        return ""
    return max(ages, key=lambda commit: ages[commit] or 0)


def missing() -> list[str]:
    """The sections with no result at this commit."""
    kept, head = results(), git("rev-parse", "HEAD")
    return [name for name in EVERY if kept.get(name, {}).get("commit") != head]


def sections(files: list[str], commit: str) -> list[str]:
    """The sections that a change touches in its folders, then the third whose turn it is."""
    touched = [name for name, folders in TOUCHES.items() if any(file.startswith(folders) for file in files)]
    turn = THIRDS[int(commit, 16) % len(THIRDS)]
    return list(dict.fromkeys([*turn, *touched]))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """The modules of lmkit that a file names in its imports; for `from a import b` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("lmkit.")}


def touched_tests(files: list[str]) -> list[str]:
    """Test files whose turn it is because of a change."""
    names = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
    reach = names | {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "lmkit").rglob("*.py")
        if imports_of(path) & names
    }
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    shown = [path.relative_to(ROOT).as_posix() for path in tests]
    return [name for name, path in zip(shown, tests, strict=True) if name in files or imports_of(path) & reach]


def has_slow(path: Path) -> bool:
    """Whether a test file has slow tests."""
    text, listed = path.read_text(), (ROOT / "tests" / "rotation.txt").read_text()
    return "mark.slow" in text or "rotated(" in text or f"\n{path.relative_to(ROOT).as_posix()}::" in listed


def all_slow() -> list[str]:
    """All files with slow tests."""
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py")) if has_slow(path)]


def slow_tests(files: list[str], commit: str) -> list[str]:
    """Files whose slow tests run: those that a change touches, then every third one, from another place each time."""
    slow, touched, turn = all_slow(), set(touched_tests(files)), int(commit, 16) % 3
    return [one for one in slow if one in touched] + [one for one in slow[turn::3] if one not in touched]


def age() -> str:
    """How many commits ago everything ran."""
    return str(commits_since(commit)) if (commit := last_full()) else "never"


def record(name: str, seconds: float, log: Path) -> None:
    """Keeps when a section ran, on what, how long it took, and how many tests passed, failed and were skipped."""
    counts: dict[str, int] = {}
    for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", log.read_text()):
        counts[word] = counts.get(word, 0) + int(number)
    result = {
        "date": time.strftime("%Y-%m-%d"), "commit": git("rev-parse", "HEAD"), "seconds": round(seconds),
        "counts": counts,
    }  # fmt: skip
    kept = results() | {name: result}
    ordered = {one: kept[one] for one in EVERY if one in kept}
    RESULT.write_text(json.dumps(ordered, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Prints what was asked for, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sections", "slow", "every", "missing", "age", "record"])
    parser.add_argument(
        "values", nargs="*", help="of record: a section, its seconds, and the file with what it printed"
    )
    parser.add_argument("--third", type=int, choices=[0, 1, 2], help="of slow: this third of all files")
    parser.add_argument("--since", default="", help="revision that the change began at (default: the last full run)")
    chosen = parser.parse_args(argv)
    if chosen.what == "record":
        name, seconds, log = chosen.values
        record(name, float(seconds), Path(log))
        return
    if chosen.what == "slow" and chosen.third is not None:
        lines = all_slow()[chosen.third :: 3]
    elif chosen.what in ("slow", "sections"):
        pick = slow_tests if chosen.what == "slow" else sections
        lines = pick(changed(chosen.since), git("rev-parse", "HEAD"))
    else:
        lines = {"every": lambda: list(EVERY), "missing": missing, "age": lambda: [age()]}[chosen.what]()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
