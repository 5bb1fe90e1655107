"""What a run of CI adds to the fast suite: a third of the rest, by the commit's hash, and what a change touches.

    python tools/ci_plan.py sections              # names of this commit's sections, in the order in which they run
    python tools/ci_plan.py slow [--since REV]    # files whose slow tests run: touched ones first, then a third of all
    python tools/ci_plan.py age                   # commits since the last full run (tools/test_all.json), or "never"
    python tools/ci_plan.py record SECONDS LOG    # keeps the result of a full run, from what it printed

A test file is touched where the change has the file itself, or a module that it imports, directly or through one other
module of lmkit. Everything else waits for its turn, and for tools/test_all.sh.
"""

import argparse
import ast
import json
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "tools" / "test_all.json"
THIRDS = (("newer_python", "compilers"), ("parity", "evals"), ("engines",))  # a section is a function of .ci/run
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


def last_full() -> str:
    """The commit of the last full run, where this history has it."""
    if not RESULT.is_file():
        return ""
    commit = json.loads(RESULT.read_text())["commit"]
    known = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True)
    return commit if known.returncode == 0 else ""


def sections(files: list[str], commit: str) -> list[str]:
    """The sections that a change touches in its folders, then the third whose turn it is."""
    touched = [name for name, folders in TOUCHES.items() if any(file.startswith(folders) for file in files)]
    turn = THIRDS[int(commit, 16) % len(THIRDS)]
    return list(dict.fromkeys([*turn, *touched]))


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


def slow_tests(files: list[str], commit: str) -> list[str]:
    """Files whose slow tests run: those that a change touches, then every third one, from another place each time."""
    slow = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py")) if has_slow(path)]
    touched = set(touched_tests(files))
    turn = int(commit, 16) % 3
    return [one for one in slow if one in touched] + [one for one in slow[turn::3] if one not in touched]


def age() -> str:
    """How many commits ago everything ran."""
    return git("rev-list", "--count", f"{commit}..HEAD") if (commit := last_full()) else "never"


def record(seconds: float, log: Path) -> None:
    """Keeps when everything ran, on what, how long it took, and how many tests passed and were skipped."""
    counts: dict[str, int] = {}
    for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", log.read_text()):
        counts[word] = counts.get(word, 0) + int(number)
    sections = dict(re.findall(r"^== (\w+): (\d+) s$", log.read_text(), flags=re.MULTILINE))
    result = {
        "date": time.strftime("%Y-%m-%d"), "commit": git("rev-parse", "HEAD"), "seconds": round(seconds),
        "counts": counts, "sections": {name: int(one) for name, one in sections.items()},
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Prints what was asked for, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sections", "slow", "age", "record"])
    parser.add_argument("values", nargs="*", help="of record: seconds, and the file with what the run printed")
    parser.add_argument("--since", default="", help="revision that the change began at (default: the last full run)")
    chosen = parser.parse_args(argv)
    if chosen.what == "age":
        print(age())
    elif chosen.what == "record":
        record(float(chosen.values[0]), Path(chosen.values[1]))
    else:
        pick = slow_tests if chosen.what == "slow" else sections
        print("\n".join(pick(changed(chosen.since), git("rev-parse", "HEAD"))))


if __name__ == "__main__":
    main()
