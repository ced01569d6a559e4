"""Every ablation of the paper is a file whose rows compose at full scale, and at a small scale on request."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig

from e2enet.common.configs import as_plain, compose_config, group_options
from e2enet.common.overrides import force_added, parse_override
from e2enet.configuration.check import config_problems
from e2enet.runs.ablations import ablation_problems, row_setting
from e2enet.runs.job_key import job_key
from e2enet.runs.rows import compose_job

EXPERIMENTS = [
    *(
        "baselines",
        "datasets",
        "folds",
        "fusion",
        "granularity",
        "kernel_shape",
        "mechanisms",
        "mirroring",
        "schedule",
        "seeds",
    ),
    *("shift_size", "short_runs", "sparsity", "transfer", "update_period", "width"),
]
ABLATIONS = {name: as_plain(compose_config([f"experiments={name}"]).ablation) for name in EXPERIMENTS}
ROWS = [(name, row) for name, ablation in ABLATIONS.items() for row in ablation["rows"] or {}]
SMALL = ["training=small", "data=phantom"]
# They compare something else, with masks or without them, as the recipe has it.
OPEN_TO_DENSE = ("folds", "mirroring", "seeds", "transfer")


@pytest.fixture(autouse=True)
def a_machine_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have a GPU and every package: the check also refuses what this machine cannot run."""
    monkeypatch.setattr("e2enet.configuration.conflicts.has_gpu", lambda: True)
    monkeypatch.setattr("e2enet.network.baselines.PLAIN_UNET_PACKAGE", "torch")


def composed(experiment: str, row: str, *more: str) -> DictConfig:
    return compose_job([f"experiments={experiment}", f"row={row}", *more]).config


def network(experiment: str, row: str) -> dict[str, Any]:
    return as_plain(composed(experiment, row).network)


def test_these_are_all() -> None:
    assert list(group_options("experiments")) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_section_is_sound(name: str) -> None:
    assert ablation_problems(ABLATIONS[name]) == []
    assert ABLATIONS[name]["rows"] is None or len(ABLATIONS[name]["rows"]) > 1
    assert compose_config([f"experiments={name}"]).name == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_scale_is_the_papers(name: str) -> None:
    # tests/config/test_every_config.py asserts that every job passes the check.
    config = compose_config([f"experiments={name}"])
    assert (config.training.epochs, config.training.steps_per_epoch, config.plan.kind) == (1000, 250, "paper")
    assert config.data.layout["_target_"] == "e2enet.data.layouts.described.AMOSLayout"
    for row, content in (ABLATIONS[name]["rows"] or {}).items():
        assert not [text for text in content["overrides"] if text.startswith(("training", "plan"))]
        assert row_setting(ABLATIONS[name], row).keys() == {"in_channels", "num_classes", "patch_size", "strides"}


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_row_runs_small_where_asked_to(name: str, row: str) -> None:
    config = composed(name, row, *SMALL)
    assert config_problems(config) == []
    assert (config.training.epochs, config.plan.kind, config.network.base_features) == (20, "auto", 16)
    # The rows of one experiment are datasets. Of the other rows, only the union brings its own dataset.
    assert name == "datasets" or (name, row) == ("transfer", "both") or config.data.name == "phantom"


@cache
def presets_of_dense_fusion() -> list[str]:
    return [name for name in group_options("training") if not compose_config([f"training={name}"]).dsff.enabled]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in OPEN_TO_DENSE])
def test_rows_keep_their_masks_under_every_preset(name: str) -> None:
    """`training=laptop` has dense fusion: without their masks, rows would be one job under several labels."""
    rows = {row: content["overrides"] for row, content in ABLATIONS[name]["rows"].items()}
    configs = {
        preset: {
            row: as_plain(compose_config([f"experiments={name}", f"training={preset}", *force_added(overrides)]))
            for row, overrides in rows.items()
        }
        for preset in ("paper", *presets_of_dense_fusion())
    }
    assert len(configs) > 1
    for own in configs.values():
        for row, overrides in rows.items():
            assert own[row]["dsff"]["enabled"] == configs["paper"][row]["dsff"]["enabled"]
            given = dict(text.removeprefix("dsff.").split("=", 1) for text in overrides if text.startswith("dsff."))
            assert own[row]["dsff"]["enabled"] or not given
            for key, value in given.items():
                assert own[row]["dsff"][key] == parse_override(f"{key}={value}").value()
        assert len(set(map(job_key, own.values()))) == len(set(map(job_key, configs["paper"].values())))


@pytest.mark.parametrize("name", ["folds", "seeds"])
def test_sweeps_without_rows(name: str) -> None:
    config = compose_config([f"experiments={name}"], with_hydra=True)
    assert dict(config.hydra.sweeper.params) == {"folds": {"fold": "0,1,2,3,4"}, "seeds": {"seed": "0,1,2"}}[name]
    assert config_problems(compose_config([f"experiments={name}", *SMALL])) == []


def test_rows_are_what_they_are_called() -> None:
    densities = {row: composed("sparsity", row).dsff.density for row in ("s90", "s80", "s70", "s50")}
    assert densities == {"s90": 0.1, "s80": 0.2, "s70": 0.3, "s50": 0.5}
    assert composed("sparsity", "s70").dsff.density_by_dim0 == {48: 0.2}
    assert composed("sparsity", "s00").dsff.enabled is False
    mechanisms = {
        # null, the default of shift_size, is 3 for (1, 3, 3) kernels
        row: (config.dsff.enabled, config.network.shift_size or 3, list(config.network.kernel_size))
        for row in ABLATIONS["mechanisms"]["rows"]
        for config in [composed("mechanisms", row)]
    }
    assert mechanisms == {
        "dsff_shift": (True, 3, [1, 3, 3]),
        "dsff_only": (True, 1, [1, 3, 3]),
        "dsff_k333": (True, 1, [3, 3, 3]),
        "shift_only": (False, 3, [1, 3, 3]),
        "neither": (False, 1, [1, 3, 3]),
    }
    assert [network("shift_size", row)["shift_size"] for row in ("m1", "m3", "m5", "m7", "m11")] == [1, 3, 5, 7, 11]
    assert network("kernel_shape", "k333_mixed")["inner_kernel_size"] == [1, 3, 3]
    assert [composed("schedule", row).dsff.growth for row in ("dsff", "dsff_gradient", "rigl")] == [
        *("random", "gradient", "gradient")
    ]
    masks = [composed("granularity", row).dsff for row in ("kernel", "group8", "group16", "group32")]
    assert [(own.granularity, own.group_size) for own in masks] == [
        *(("kernel", 16), ("group", 8), ("group", 16), ("group", 32))
    ]
    assert composed("transfer", "pretrained").pretraining == ["data=amos_ct"]
    together = composed("transfer", "both", "data.split=official")
    assert (together.data.modality, together.data.split, together.pretraining) == ("both", "official", None)
    assert list(ABLATIONS["transfer"]["rows"]) == ["pretrained", "scratch", "both"]
    assert composed("transfer", "pretrained", "ablation.pretraining=['data=btcv']").pretraining == ["data=btcv"]


# The paper's Table 3, at S = 0.7: M parameters, GFLOP, Dice.
SPARSE, DENSE, WITHOUT_SHIFT = (11.23, 969.32, 90.2), (23.90, 3069.55, 90.2), (27.97, 1778.55, 90.1)


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("mechanisms", {"dsff_shift": SPARSE, "shift_only": DENSE, "dsff_k333": WITHOUT_SHIFT}),
        ("kernel_shape", {"k133_shift": SPARSE, "k333_mixed": WITHOUT_SHIFT}),
        ("fusion", {"grid_sparse": SPARSE, "grid_dense": DENSE}),
    ],
)
def test_the_mechanisms_are_the_papers_at_its_sparsity(
    experiment: str, expected: dict[str, tuple[float, float, float]]
) -> None:
    # tests/report/test_costs.py counts the cost of each row's own overrides.
    rows = ABLATIONS[experiment]["rows"]
    published = {row: tuple(content["published"].values()) for row, content in rows.items() if "published" in content}
    assert published == expected
    for row in rows:
        dsff = composed(experiment, row).dsff
        # The rule for 48 channels belongs to the shifted network; the mixture has one density in every layer.
        rule = {} if expected.get(row) == WITHOUT_SHIFT else {48: 0.2}
        assert not dsff.enabled or (dsff.density, dict(dsff.density_by_dim0 or {})) == (0.3, rule)
    without_shift = [row for row, known in expected.items() if known == WITHOUT_SHIFT]
    for config in (composed(experiment, row).network for row in without_shift):
        assert (config.kernel_size, config.inner_kernel_size, config.shift_size) == ([3, 3, 3], [1, 3, 3], 1)


def test_short_runs_need_no_period_in_steps() -> None:
    """The rows of `short_runs` keep the share of the run that the experiment sets; presets give theirs in steps."""
    alone = compose_config(["dsff=short", "training=paper"]).dsff
    assert (alone.update_every, alone.update_unit) == (0.125, "auto")
    assert compose_config(["dsff=short", "training=small"]).dsff.update_every == 50
    for row, prune_by, prune_over in (
        ("rigl_sensitivity", "sensitivity", "layer"),
        ("rigl_network", "magnitude", "network"),
        ("short", "sensitivity", "network"),
    ):
        with_row = composed("short_runs", row, "training=hippocampus").dsff
        assert (with_row.prune_by, with_row.prune_over, with_row.growth) == (prune_by, prune_over, "gradient")
        assert (with_row.density, with_row.update_every, with_row.update_until) == (0.2, 0.125, 0.75)


def test_update_periods_are_the_papers_steps_at_full_scale() -> None:
    def steps(row: str, *more: str) -> float:
        config = composed("update_period", row, *more)
        assert config.dsff.update_unit == "epochs"
        return config.dsff.update_every * config.training.steps_per_epoch

    rows = ABLATIONS["update_period"]["rows"]
    assert [steps(row) for row in rows] == pytest.approx([150, 600, 1200, 4800])
    assert [steps(row, "training=small") for row in rows] == pytest.approx([15, 60, 120, 480])
    config = composed("update_period", "steps600", "dsff.growth=gradient")
    assert config.dsff.growth == "gradient"  # the command line decides what a row leaves open


def test_mistakes_in_a_section_are_told_with_their_place() -> None:
    rows = {
        "A": {"label": "a", "overrides": []},
        "b": {"overrides": "dsff=set", "published": {"params": "many", "dic": 1}},
        "c": {"label": "c", "overrides": [], "published": {"dice": "90.1-90.2"}},
    }
    found = ablation_problems({"title": "T", "rows": rows, "reference": "d", "setting": {"in_channels": 0}}, "e")
    assert found == [
        "ablation.rows.A: a row's name has lower-case letters, digits and _, a letter first",
        "ablation.rows.b.overrides=dsff=set: expected a list of each text",
        "ablation.rows.b.label: is missing",
        'ablation.rows.b.published.params=many: expected a number > 0 or a range such as "90.1-90.2"',
        "ablation.rows.b.published.dic: unknown key; did you mean ablation.rows.b.published.dice?",
        "ablation.setting.in_channels=0: expected a whole number >= 1",
        *(f"ablation.setting.{key}: is missing" for key in ("num_classes", "patch_size", "strides")),
        "ablation.reference=d: expected one of its rows: A | b | c",
        "row=e: the experiment has no such row; expected A | b | c",
    ]
    assert ablation_problems({"titel": "T"}) == [
        "ablation.titel: unknown key; did you mean ablation.title?",
        "ablation.title: is missing",
    ]


def test_a_row_needs_its_experiment() -> None:
    assert config_problems(compose_config(["row=s80"])) == [
        "row=s80: rows belong to an experiment; choose one, e.g. experiments=sparsity"
    ]
    (problem,) = config_problems(compose_config(["experiments=sparsity", "row=s81"]))
    assert problem == "row=s81: the experiment has no such row; expected s90 | s80 | s70 | s50 | s00"


def test_a_setting_is_the_tables_with_what_the_row_has_instead() -> None:
    ablation = ABLATIONS["datasets"]
    assert row_setting(ablation, "brats")["in_channels"] == 4
    assert row_setting(ablation, "brats")["patch_size"] == row_setting(ablation, "amos_ct")["patch_size"]
    assert row_setting(ablation, "btcv")["patch_size"] == [96, 96, 96]
    assert row_setting({"title": "T", "rows": {"a": {}}}, "a") == {}
