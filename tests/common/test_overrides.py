"""Command-line arguments: text that looks like a number, and characters that Hydra's grammar reserves."""

from __future__ import annotations

import shlex

import pytest
from hydra.errors import HydraException

from e2enet.common.config_rules import list_of, optional, table_of, text, whole
from e2enet.common.overrides import (
    as_text,
    overrides_of,
    parse_override,
    quoted,
    renamed,
    several_values,
    unreadable,
    with_names_of_today,
)

TESTS = {"name": text, "row": optional(text), "tags": list_of(text), "count": whole(0), "map": table_of(whole(0), text)}
TESTS["lists"] = table_of(text, list_of(text))


def typed(argument: str) -> str:
    return as_text(argument, lambda key: TESTS[key].accepts if key in TESTS else None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("name=2024_01", "2024_01"),
        ("name=007", "007"),
        ("++name= 1e3 ", "1e3"),
        ("name=nan", "nan"),
        ("row=12", "12"),
        ("tags=[2024_01,b, 3]", ["2024_01", "b", "3"]),
        ("tags=[7]", ["7"]),
        ("lists={a:[101, 1_0,b,1e5],c:[7]}", {"a": ["101", "1_0", "b", "1e5"], "c": ["7"]}),
    ],
)
def test_numbers_are_text_where_text_is_taken(argument: str, value: object) -> None:
    assert parse_override(typed(argument)).value() == value


def test_values_of_a_sweep_too() -> None:
    assert typed("name=2024_01,b,3") == "name='2024_01',b,'3'"
    assert parse_override(typed("name=2024_01,b,3")).is_choice_sweep()


@pytest.mark.parametrize(
    "argument",
    [
        *("count=2024_01", "name=plain", "name='2024_01'", "name=true", "row=null", "other=2024_01", "name", "-m"),
        *("map={1:2024_01}", "~name", "count=1,2", "tags=[[1],2]", "name=choice(1,2)", "name=glob(*)", "name=a=b"),
        *("lists={a:[b]}", "lists={a:[[1]]}"),
    ],
)
def test_everything_else_stays_as_it_is(argument: str) -> None:
    assert typed(argument) == argument


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("resume=/data/epoch=9/run", "= in the value of resume"),
        (r"data.group=(p\d+)_", "( and ) in the value of data.group"),
        ("resume=/data/Größe/run", "ö and ß in the value of resume"),
        ("paths.data=~/data", "~ in the value of paths.data"),
        ("data.name=a(b)&c", "( and ) and & in the value of data.name"),
        ("data.name=it's", "' in the value of data.name"),
        ("run_folder=$(pwd)", "( and ) in the value of run_folder"),
    ],
)
def test_what_must_be_quoted_is_named_and_shown(argument: str, named: str) -> None:
    with pytest.raises(HydraException) as caught:
        parse_override(argument)
    problem = unreadable(argument, caught.value)
    assert problem.startswith(f"{argument}: {named} must be quoted; write ")
    (shown,) = shlex.split(problem.rsplit("; write ", 1)[1])  # as a shell splits it
    key, _, value = argument.partition("=")
    assert parse_override(shown).key_or_group == key and parse_override(shown).value() == value


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("word", "word: expected key=value"),
        ("größe=1", "größe=1: 'größe' is no key; expected letters, digits and _, with dots between"),
        (
            "a=[b=c]",
            "a=[b=c]: the value of a cannot be read (no viable alternative at input '[1,2'); write \"a=['b=c']\"",
        ),
        (
            "a=[ä, b]",
            "a=[ä, b]: the value of a cannot be read (no viable alternative at input '[1,2'); write \"a=['ä',b]\"",
        ),
        ("a=[1,2", "a=[1,2: the value of a cannot be read (no viable alternative at input '[1,2'); write \"a='[1,2'\""),
    ],
)
def test_other_problems(argument: str, problem: str) -> None:
    assert unreadable(argument, HydraException("no viable alternative at input '[1,2'\nmore")) == problem


@pytest.mark.parametrize("value", ["a\\b", "\\'", "'", "\\\\' \\", "\\\\", 'a"b\\"', "", "a\nb'", "(p\\d)'\\"])
def test_what_is_quoted_is_read_as_it_was(value: str) -> None:
    assert parse_override(f"name={quoted(value)}").value() == value


def test_a_comma_is_told_with_both_ways_out() -> None:
    expected = "a=b,c: one value expected for a; a list is written as [a,b], and where the comma belongs to the text: "
    assert several_values("a=b,c") == expected + "write \"a='b,c'\""


def test_flags_and_their_values_are_no_overrides() -> None:
    assert overrides_of(["-m", "a=1", "--config-dir", "here", "--cfg", "job", "word", "~b"]) == ["a=1", "word", "~b"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("training.optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("++training.schedule={_target_:x}", "++schedule={_target_:x}"),
        ("~training.schedule.warmup", "~schedule.warmup"),
        ("trainer.log_every=1", "trainer.log_every_n_steps=1"),
        ("logger.offline=false", "logger.wandb.offline=false"),
        ("trainer.log_every_n_steps=1", "trainer.log_every_n_steps=1"),
        ("data.foreground_share=0.5", "data.sampler.foreground_share=0.5"),
        ("data.augmentation=mirror", "augmentation=mirror"),
        ("data.augment_on=device", "data.augment_on=device"),
        ("training.losses=1", "training.losses=1"),
        ("name=training.loss", "name=training.loss"),
    ],
)
def test_names_of_earlier_versions(given: str, read: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert renamed(given) == read
    told = " ".join(capsys.readouterr().out.split())
    assert (f"now: {given} is read so" in told) == (given != read)


def test_values_that_are_files_now_win_over_the_file_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["data.layout=cases", "-m", "data=brats", "logger.group=x"]
    assert with_names_of_today(given) == ["data=brats_2021", "-m", "logger.wandb.group=x"]
    assert "data.layout=cases is data=brats_2021 now: it is read so" in " ".join(capsys.readouterr().out.split())
