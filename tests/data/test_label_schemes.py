"""nnU-Net's ignore label and regions: read from dataset.json, renumbered, stored, and refused where unsound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from e2enet.common.config_check import config_problems
from e2enet.common.configs import compose_config
from e2enet.data.command import SECTIONS
from e2enet.data.config_rules import SCHEMA
from e2enet.data.formats.label_section import read_scheme
from e2enet.data.formats.labels import LabelTable, learned_region_problems, map_scheme, resolve_labels
from e2enet.data.formats.problems import Problem
from e2enet.data.formats.scheme import LabelScheme, lossy_labels, scheme_difference

TUMOUR = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
BRATS = LabelScheme(
    {0: "background", 1: "whole", 2: "core", 3: "enhancing"},
    None,
    {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
    (1, 2, 3),
)


def scheme_of(labels: dict[str, Any], order: Any = None) -> LabelScheme:
    scheme, problems = read_scheme({"labels": labels, "regions_class_order": order})
    assert problems == [] and scheme is not None
    return scheme


def problems_of(labels: dict[str, Any], order: Any = None, table: LabelTable | None = None) -> list[str]:
    """Return the problems of a dataset.json, from reading it and from resolving its labels."""
    scheme, found = read_scheme({"labels": labels, "regions_class_order": order})
    problems: list[Problem] = []
    resolve_labels(scheme, table or LabelTable(), problems)
    return [*found, *(f"{one.severity}: {one.problem}" for one in problems)]


def test_plain_labels_are_as_they_were() -> None:
    scheme = scheme_of({"background": 0, "b": 2, "a": 1})
    assert scheme == LabelScheme({0: "background", 1: "a", 2: "b"})
    assert scheme.num_outputs == 3 and scheme.class_names == scheme.file_names == scheme.names
    assert scheme.to_plain() == {"labels": scheme.names} and scheme.special == {}  # as in earlier checkpoints
    # Lists of one label are plain labels: nnU-Net trains with regions only if a list holds several.
    assert scheme_of({"background": 0, "a": [1], "b": [2]}) == scheme


def test_the_ignore_label_is_no_class() -> None:
    scheme = scheme_of({"background": 0, "a": 1, "b": 2, "ignore": 3})
    assert scheme == LabelScheme({0: "background", 1: "a", 2: "b"}, ignore=3)
    assert scheme.num_outputs == 3 and scheme.file_names[3] == "ignore" and 3 not in scheme.class_names
    label = np.array([0, 1, 2, 3], np.uint8)
    assert scheme.foreground(label).tolist() == [False, True, True, False]
    cleared = scheme.without_ignored(label)
    assert cleared.tolist() == [0, 1, 2, 0] and cleared.dtype == np.uint8 and label[3] == 3
    assert scheme_of({"0": "background", "1": "a", "2": "Ignore"}).ignore == 2


def test_regions_are_the_outputs_in_their_order() -> None:
    scheme = scheme_of(TUMOUR, [1, 2, 3])
    assert scheme == BRATS and scheme.num_outputs == 3
    assert scheme.class_names == {0: "background", 1: "whole", 2: "core", 3: "enhancing"}
    assert scheme.file_names == {0: "background", 1: "whole", 2: "whole + core", 3: "whole + core + enhancing"}
    # nnU-Net's kidney example: tumours and cysts are written last, and the tumour is label 2.
    kidney = scheme_of({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}, [1, 3, 2])
    assert kidney.names == {0: "background", 1: "kidney", 2: "tumour", 3: "masses"} and kidney.order == (1, 3, 2)
    united = scheme_of({"background": 0, "whole": [1, 2], "ignore": 3}, [1])
    assert united.num_outputs == 1 and united.ignore == 3 and united.names[2] == "label 2"


def test_the_first_difference_of_two_schemes_is_told() -> None:
    names = ("a", "b")
    plain = LabelScheme({0: "background", 1: "liver", 2: "spleen"})
    assert scheme_difference(plain, LabelScheme({2: "spleen", 1: "liver", 0: "background"}), names) is None
    other = LabelScheme({0: "background", 1: "liver", 2: "kidney", 3: "spleen"})
    assert scheme_difference(plain, other, names) == "label 2 is 'spleen' in a and 'kidney' in b"
    less, ignoring = LabelScheme({0: "background", 1: "liver"}), replace(plain, ignore=3)
    assert scheme_difference(plain, less, names) == "label 2 is 'spleen' in a and no class in b"
    assert scheme_difference(plain, ignoring, names) == "label 3 is no class in a and 'ignore' in b"
    inner, outer = {"both": (1, 2), "spleen": (2,)}, {"spleen": (2,), "both": (1, 2)}
    assert scheme_difference(plain, replace(plain, regions=inner, order=(1, 2)), names) == (
        "label 1 is 'liver' in a and 'both' in b"
    )
    first, second = replace(plain, regions=inner, order=(1, 2)), replace(plain, regions=inner, order=(1, 1))
    assert "regions_class_order': [1, 2]} in a and {" in str(scheme_difference(first, second, names))
    assert scheme_difference(first, replace(plain, regions=outer, order=(2, 1)), names) is not None


def test_a_scheme_comes_back_from_plain_containers() -> None:
    for scheme in (BRATS, scheme_of({"background": 0, "whole": [1, 2], "ignore": 3}, [1])):
        assert LabelScheme.from_plain({"name": "x", "regions": {"y": [1]}, **scheme.to_plain()}) == scheme
    assert LabelScheme.from_plain({"labels": {"0": "b", "1": "x"}}) == LabelScheme({0: "b", 1: "x"})


def test_the_map_renumbers_ignore_and_regions() -> None:
    found = LabelScheme({0: "b", 1: "x", 2: "y", 4: "z"}, ignore=5)
    assert map_scheme(found, {4: 3, 5: 4}) == LabelScheme({0: "b", 1: "x", 2: "y", 3: "z"}, ignore=4)
    assert map_scheme(found, {5: 0}).ignore is None  # unlabelled voxels then count as background
    assert map_scheme(found, {4: 5}) == LabelScheme({0: "b", 1: "x", 2: "y"}, ignore=5)  # class 4 is ignored too
    regions = LabelScheme({0: "b", 1: "w", 2: "c", 4: "e"}, None, {"w": (1, 2, 4), "e": (4,)}, (1, 4))
    mapped = map_scheme(regions, {4: 3})
    assert mapped.regions == {"w": (1, 2, 3), "e": (3,)} and mapped.order == (1, 3)


def test_a_config_may_name_the_ignore_label() -> None:
    problems: list[Problem] = []
    table = LabelTable({0: "background", 1: "liver", 2: "ignore"})
    assert resolve_labels(None, table, problems) == LabelScheme({0: "background", 1: "liver"}, ignore=2)
    assert resolve_labels(LabelScheme({0: "b", 1: "l"}, ignore=2), table, problems).ignore == 2
    assert problems == []


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"background": 0, "a": 2, "ignore": 1}, None, "error: label 1 is called 'ignore': the highest of [0, 1, 2]"),
        ({"background": 0, "a": 1, "ignore": 3}, None, "error: label values are [0, 1, 3]: consecutive integers"),
        ({"background": 0, "ignore": 1}, None, "error: labels name no foreground class"),
        ({"background": 0, "w": [1, 2], "ignore": 2}, [1], "labels give the value 2 to 'ignore' and to a region"),
        (
            TUMOUR,
            None,
            "regions_class_order is None: one label for each region expected, in the order of ['whole', 'co",
        ),
        (TUMOUR, [1, 2], "regions_class_order is [1, 2]: one label for each region"),
        (
            TUMOUR,
            [1, 2, 2],
            "error: regions_class_order writes region 'enhancing' as label 2: one of its own, [3], exp",
        ),
        (TUMOUR | {"whole": [0, 1, 2, 3]}, [1, 2, 3], "error: region 'whole' unites [0, 1, 2, 3]: labels out of [1, 2"),
        (TUMOUR | {"other": [3, 2]}, [1, 2, 3, 2], "error: region 'other' unites the same labels as 'core'"),
        ({"background": 0, "w": []}, None, "labels 'w': []: one integer per label expected, from 0 to 32767, or a lis"),
        ({"background": 0, "w": [1, "x"]}, [1], "labels 'w': [1, 'x']: one integer per label"),
        ({"background": 0, "w": [1, 3]}, [1], "error: label values are [0, 1, 3]: consecutive integers"),
        ({"background": 0, "w ": [1, 2], "w": 1}, [2, 1], "labels [1, 2] are all called 'w'"),
    ],
)
def test_what_is_unsound_is_said(labels: dict[str, Any], order: Any, message: str) -> None:
    assert [one for one in problems_of(labels, order) if one.startswith(message)]


def test_an_order_that_overwrites_a_region_is_a_warning() -> None:
    assert lossy_labels(BRATS) == {}
    turned = {"background": 0, "enhancing": 3, "core": [2, 3], "whole": [1, 2, 3]}
    (problem,) = problems_of(turned, [3, 2, 1])
    assert problem.startswith("warning: regions_class_order writes label 2 as 1, 3 as 1: what is predicted right is")


def test_a_scored_region_is_no_trained_one() -> None:
    (problem,) = problems_of(TUMOUR, [1, 2, 3], LabelTable(regions={"core": (2, 3)}))
    assert problem == "error: data.regions: 'core' is a region of dataset.json, scored anyway; another name expected"


def test_a_case_of_ignored_voxels_alone_is_a_warning(toy: Any) -> None:
    toy.describe(labels={"0": "background", "1": "liver", "2": "spleen", "3": "ignore"})
    label = np.zeros((8, 9, 6), np.uint8)
    label[:4] = 3
    toy.write_label("a", label)
    text = "no foreground: every voxel is background or ignored"
    assert toy.problems() == [("a", "warning", text, str(Path("labelsTr/a.nii.gz")))]


def learned(table: LabelTable, found: LabelScheme | None = None) -> tuple[LabelScheme, list[str]]:
    problems: list[Problem] = []
    scheme = resolve_labels(found, table, problems)
    return scheme, [f"{one.severity}: {one.problem}" for one in problems]


def test_a_config_makes_regions_the_outputs_of_any_layout() -> None:
    """A config does this as nnU-Net's dataset.json does, except for the names of single labels."""
    names = {0: "background", 1: "necrosis", 2: "edema", 3: "enhancing"}
    regions = {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    table = LabelTable.of_config(names, {4: 3}, regions, [2, 1, 3])
    scheme, problems = learned(table)
    assert not problems and scheme.num_outputs == 3 and scheme.names == names and scheme.order == (2, 1, 3)
    assert scheme.class_names == {0: "background", 1: "whole", 2: "core", 3: "enhancing"}
    assert LabelScheme.from_plain(scheme.to_plain()) == scheme and table.scored_regions == {}
    assert lossy_labels(scheme) == {}
    # Without an order the regions are only scored, beside the labels that are learned one by one.
    beside = LabelTable.of_config(names, {4: 3}, regions)
    assert learned(beside)[0].regions == {} and beside.scored_regions["core"] == (1, 3)
    # The regions of dataset.json are replaced, its names are kept.
    assert learned(LabelTable.of_config(None, None, {"rim": [3]}, [3]), BRATS)[0].regions == {"rim": (3,)}


@pytest.mark.parametrize(
    ("regions", "order", "problem"),
    [
        ({}, [1], "regions_class_order is [1]: none expected where no label is a region"),
        ({"a": [1, 2], "b": [2]}, [1], "regions_class_order is [1]: one label for each region expected"),
        (
            {"a": [1, 2], "b": [2]},
            [1, 1],
            "regions_class_order writes region 'b' as label 1: one of its own, [2], expected",
        ),
        ({"a": [1, 7], "b": [2]}, [1, 2], "region 'a' unites [1, 7]: labels out of [1, 2] expected"),
        ({"a": [1], "b": [1]}, [1, 1], "region 'b' unites the same labels as 'a'"),
    ],
)
def test_regions_that_cannot_be_learned(regions: dict[str, list[int]], order: list[int], problem: str) -> None:
    names = {0: "background", 1: "x", 2: "y"}
    _, problems = learned(LabelTable.of_config(names, None, regions, order))
    assert any(text.startswith(f"error: {problem}") for text in problems), problems
    assert any(text.startswith(problem) for text in learned_region_problems(names, regions, order))
    config = OmegaConf.masked_copy(compose_config(["data=btcv"]), SECTIONS)
    config.data.update({"labels": names, "regions": regions, "regions_class_order": order})
    assert any(text.startswith(f"data.regions: {problem}") for text in config_problems(config, SCHEMA))


def test_the_order_of_regions_that_lose_a_label_is_warned_of() -> None:
    names = {0: "background", 1: "x", 2: "y"}
    _, problems = learned(LabelTable.of_config(names, None, {"y": [2], "both": [1, 2]}, [2, 1]))
    assert problems == [
        "warning: regions_class_order writes label 2 as 1: what is predicted right is scored wrong there; "
        "list a region before those within it"
    ]
