"""InputError collects problems and ends a program without a traceback."""

from __future__ import annotations

import signal

import pytest

from e2enet.common.errors import InputError, exit_on_input_error, first_line, raise_problems


def test_no_problem_no_error() -> None:
    raise_problems([], "wrong:")


def test_every_problem_is_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        raise_problems(["a.nii.gz: missing", "b.nii.gz: missing"], "dataset.json:")
    assert str(caught.value).splitlines() == [
        "dataset.json:",
        "  - a.nii.gz: missing",
        "  - b.nii.gz: missing",
    ]


def test_as_decorator_it_prints_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_input_error()
    def main() -> None:
        raise InputError("spacing must be positive")

    for _ in range(2):  # the decorator must work for more than one call
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
    assert capsys.readouterr().err == "error: spacing must be positive\n" * 2


def test_an_error_that_says_nothing_is_told_by_its_type() -> None:
    assert first_line(ValueError("  one\ntwo")) == "one" and first_line(EOFError()) == "EOFError"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_input_error():
        _ = 1 // 0


@pytest.mark.parametrize(
    ("said", "told"), [((), "stopped; begin anew"), (("stopped; go on by a=b",), "stopped; go on by a=b")]
)
def test_ctrl_c_ends_with_one_line(said: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught, exit_on_input_error("stopped; begin anew"):
            raise KeyboardInterrupt(*said)
        signal.raise_signal(signal.SIGINT)  # a second Ctrl-C changes nothing
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130 and capsys.readouterr().err == f"{told}\n"
