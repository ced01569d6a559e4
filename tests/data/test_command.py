"""Command lines of the data package: composed as train.py composes them, all mistakes reported at once."""

from __future__ import annotations

import pytest

from e2enet.common.config_rules import flag, optional, text
from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.command import Option, build_datamodule, compose_data, show_help

OPTIONS = {"report": Option(None, optional(text), "a file"), "verbose": Option(False, flag, "more")}


def problems(*arguments: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        compose_data(arguments, OPTIONS)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_the_config_is_that_of_train() -> None:
    overrides = ["data=msd", "data.name=Task04_Hippocampus", "paths.data=raw", "training=hippocampus"]
    command = compose_data([*overrides, "verbose=true"], OPTIONS)
    assert command.config == compose_config(overrides)
    assert command.options == {"report": None, "verbose": True}
    assert command.config.plan.batch_size == 4  # set by training=hippocampus
    module = build_datamodule(command.config)
    assert str(module.source.folder) == "raw/Task04_Hippocampus" and module.mirror_axes == (1,)


def test_all_mistakes_are_told_at_once() -> None:
    found = problems(
        "data=msd", "reprot=x", "data.nam=T", "verbose=3", "dataa=msd", "plan.memory_gb=-1", "--fast", "fold=9"
    )
    assert found == [
        "--fast: expected key=value (there is no flag but --help)",
        "verbose=3: expected true | false",
        "reprot: unknown key; did you mean report?",
        "dataa: unknown key; did you mean data?",
        "data.name: needs a value, e.g. data.name=VALUE",
        "data.nam: unknown key; did you mean data.name?",
        "plan.memory_gb=-1: expected null or a number > 0",
        "fold=9: expected a whole number from 0 to 4, or all",
    ]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data=msdd", "data=msdd: no such choice (did you mean msd?)"),
        ("data=msd,nnunet", "data=msd,nnunet: one value expected for data; a list is written as [a,b], and"),
        ("seed=1,2", "seed=1,2: one value expected"),
        ("word", "word: expected key=value"),
        ("plan.kind=best", "plan.kind=best: expected auto | paper"),
        ("paths.dat=x", "paths.dat: unknown key; did you mean paths.data?"),
        ("report=", "report=: expected null or text"),
    ],
)
def test_mistakes(argument: str, expected: str) -> None:
    assert any(problem.startswith(expected) for problem in problems(argument)), problems(argument)


def test_keys_of_training_are_let_pass() -> None:
    overrides = ["optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9", "network=unet"]
    command = compose_data(overrides)
    assert command.config.optimizer.momentum == 0.9


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    show_help(["data=msd"], "usage", OPTIONS)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as caught:
        show_help(["--help"], "usage: x\n", OPTIONS)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: x\n\nKeys beside those of e2enet train:\n  report   a file\n  verbose  more\n")
    assert "msd" in printed
