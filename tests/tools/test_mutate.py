"""Mutations are made in a copy, counted as caught by a failure alone; and the list fits the code and tests of today."""

import ast
import json
import subprocess
from pathlib import Path

import mutate
import pytest
from mutate import LIST, Copy, Mutation

from helpers import ROOT

CODE = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = """from code_under_test import double, half

def test_double():
    assert double(2) == 4

def test_nothing():
    assert half
"""
DOUBLE, NOTHING = "test_it.py::test_double", "test_it.py::test_nothing"
SUM = Mutation("a sum", "code_under_test.py", "2 * x", "3 + x", (DOUBLE,))
UNSEEN = Mutation("not halved", "code_under_test.py", "x / 2", "x / 3", (NOTHING,))
BROKEN = Mutation("no module", "code_under_test.py", "def half", "def half half", (DOUBLE,))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one module and one file of tests."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "code_under_test.py").write_text(CODE)
    (root / "test_it.py").write_text(TESTS)
    (root / ".gitignore").write_text("ignored\n__pycache__\n")
    (root / "ignored").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Copy:
    copy = Copy(tmp_path / "work")
    mutate.copy_tree(tree, copy.tree)
    return copy


def test_each_mutation_is_alone_in_the_copy(tree: Path, copy: Copy) -> None:
    kept = []
    entries = mutate.run_all(copy, [SUM, UNSEEN, BROKEN], {}, lambda entries: kept.append(len(entries)))
    assert [entry["caught"] for entry in entries] == [True, False, False]
    assert [entry["by"] for entry in entries[:2]] == [DOUBLE, "all passed"]
    assert "exit status" in entries[2]["by"], "an error in collection is no failed test"
    assert kept == [1, 2, 3]
    assert not (copy.tree / "ignored").exists()
    for root in (tree, copy.tree):
        assert (root / "code_under_test.py").read_text() == CODE


def test_rest_runs_what_is_not_nearest(copy: Copy) -> None:
    far = Mutation("a sum", SUM.file, SUM.old, SUM.new, (NOTHING,))
    entry = mutate.attempt(copy, far, rest=True)
    assert (entry["caught"], entry["by"]) == (True, DOUBLE)


def test_tests_that_fail_already_stop_it(copy: Copy) -> None:
    copy.write("test_it.py", TESTS.replace("== 4", "== 5"))
    with pytest.raises(SystemExit, match="does not pass"):
        mutate.run_all(copy, [SUM], {})


def test_old_text_must_occur_once(tree: Path) -> None:
    twice = Mutation("twice", SUM.file, "return", "yield", (DOUBLE,))
    nowhere = Mutation("nowhere", "other.py", "return", "yield", (DOUBLE,))
    first, second = mutate.stale([SUM, twice, nowhere], tree)
    assert "2 times" in first
    assert "no such file" in second


def test_a_result_is_known_for_the_same_commit_and_mutation(tmp_path: Path, copy: Copy) -> None:
    path, about = tmp_path / "result.json", {"commit": "abc", "jax": "1"}
    assert mutate.earlier(path, about) == {}
    entry = {"what": SUM.what, "file": SUM.file, "caught": True, "by": "t", "seconds": 1.5, "digest": SUM.digest}
    mutate.save(path, about, [entry])
    result = json.loads(path.read_text())
    assert (result["caught"], result["of"], result["seconds"]) == (1, 1, 2)
    assert mutate.earlier(path, {**about, "commit": "def"}) == {}
    assert mutate.run_all(copy, [SUM], mutate.earlier(path, about)) == [entry]
    assert copy.runs == 0, "nothing was run again"


def test_choice_by_number() -> None:
    assert mutate.chosen([SUM, UNSEEN, BROKEN], "3,1") == [BROKEN, SUM]
    with pytest.raises(SystemExit, match="1 to 3"):
        mutate.chosen([SUM, UNSEEN, BROKEN], "4")


def test_the_list_fits_the_code() -> None:
    mutations = mutate.read_list(LIST)
    assert len(mutations) == 73
    assert len({mutation.digest for mutation in mutations}) == 73
    assert mutate.stale(mutations, ROOT) == []
    for mutation in mutations:
        assert mutation.old != mutation.new, mutation.what
        text = (ROOT / mutation.file).read_text()
        ast.parse(text.replace(mutation.old, mutation.new))


def fast_tests(path: Path) -> set[str]:
    """Names of the functions of a file that are tests of the fast suite."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    slow = {node.name for node in functions if any(ast.unparse(d)[-9:] == "mark.slow" for d in node.decorator_list)}
    return {node.name for node in functions if node.name.startswith("test_")} - slow


def test_the_tests_it_names_are_there() -> None:
    for mutation in mutate.read_list(LIST):
        assert mutation.tests, mutation.what
        for test in mutation.tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file(), test
            names = fast_tests(ROOT / file)
            assert names if not name else name.split("[")[0] in names, test
