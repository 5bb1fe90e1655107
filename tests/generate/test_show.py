"""Several texts on one terminal."""

import pytest

from lmkit.generate.show import Screen


def test_one_text_grows_behind_its_prompt(capsys: pytest.CaptureFixture) -> None:
    screen = Screen(["once"], echo=True)
    for text in (" upon", "", " a time"):
        screen.show(0, text, done=False)
    assert capsys.readouterr().out == "once upon a time"
    screen.show(0, ".", done=True)
    assert capsys.readouterr().out == ".\n"


def test_later_texts_wait_for_their_turn(capsys: pytest.CaptureFixture) -> None:
    screen = Screen(["a", "b", "c"], echo=True)
    screen.show(1, "2", done=False)
    assert capsys.readouterr().out == ""
    screen.show(0, "1", done=False)
    assert capsys.readouterr().out == "== 1 of 3\na1"
    screen.show(2, "3", done=True)
    screen.show(0, "", done=True)
    assert capsys.readouterr().out == "\n== 2 of 3\nb2"
    screen.show(1, "!", done=True)
    assert capsys.readouterr().out == "!\n== 3 of 3\nc3\n"


def test_a_translation_stands_alone(capsys: pytest.CaptureFixture) -> None:
    screen = Screen(["source"], echo=False)
    screen.show(0, "target", done=True)
    assert capsys.readouterr().out == "target\n"
