"""The documentation is correct: its Python runs, its commands compose, its links and pictures exist."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from monai.engines import SupervisedTrainer

from e2enet.__main__ import COMMANDS
from e2enet.common.configs import compose_config, group_options
from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line
from e2enet.data import check
from e2enet.data.command import compose_data
from e2enet.data.synthetic.lookalikes import LOOKALIKES
from e2enet.inference.config import check_arguments, read_config
from e2enet.nnunet.__main__ import compose_dsff, make_parser
from e2enet.training.records import write_config
from e2enet.training.resume import CONFIG_FILE, LAST_CHECKPOINT
from e2enet.training.run_state import KEY

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf"
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
INLINE_COMMAND = re.compile(r"`((?:python|torchrun|srun|e2enet) [^`]+)`")
PROMPT = "$ e2enet train "  # of a transcript: a command, and what it printed


def blocks(document: Path, language: str) -> list[str]:
    """Return the fenced code blocks of one language, in order."""
    return [code for found, code in FENCE.findall(document.read_text(encoding="utf-8")) if found == language]


def commands(document: Path) -> list[list[str]]:
    """Return the commands in a document's bash blocks and inline code, split into words."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    lines = [line for code in blocks(document, "bash") for line in code.replace("\\\n", " ").splitlines()]
    parts = [part for line in [*lines, *INLINE_COMMAND.findall(text)] for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def documented_calls() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and arguments of every documented call of `e2enet`, also as a module and by torchrun or srun."""
    modules = {command.module: name for name, command in COMMANDS.items()}
    for words in (words for document in DOCUMENTS for words in commands(document)):
        for place, word in enumerate(words):
            if word == "e2enet" and words[0] != "python":  # else a value: benchmarks name the network so
                name, arguments = words[place + 1], words[place + 2 :]
            elif word in modules or word in ("train.py", "predict.py"):
                name, arguments = modules.get(word, word.removesuffix(".py")), words[place + 1 :]
            else:
                continue
            yield name, arguments


def arguments_of(command: str) -> list[list[str]]:
    """Return the arguments of every documented call of a command, without those that only ask for help."""
    calls = [arguments for name, arguments in documented_calls() if name == command and "--help" not in arguments]
    # tests/integration/test_own_folder.py runs those with a folder of the user's.
    return [arguments for arguments in calls if "--config-dir" not in arguments]


def anchors(document: Path) -> set[str]:
    """Return GitHub's anchors of a document's headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.name)
def test_python_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write data/ and prepared/
    namespace: dict[str, object] = {"__name__": "docs"}
    accumulates = "accumulation_steps" in inspect.signature(SupervisedTrainer).parameters
    left_out = []
    with torch.random.fork_rng():
        for number, code in enumerate(blocks(document, "python"), start=1):
            if "# from MONAI 1.6 on" in code and not accumulates:
                left_out.append(number)
                continue
            # One namespace per document: a later block continues an earlier one.
            exec(compile(code, f"{document.name}, Python block {number}", "exec"), namespace)
    if left_out:
        pytest.skip(f"Python blocks {left_out} need MONAI 1.6; the others ran")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_and_pictures_exist(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.is_relative_to(PROJECT) or not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("arguments", arguments_of("train"), ids=" ".join)
def test_train_commands_compose(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The check also refuses what this machine cannot run, which is no error of the documentation.
    monkeypatch.setattr("e2enet.configuration.conflicts.has_gpu", lambda: True)
    monkeypatch.setattr("e2enet.network.baselines.PLAIN_UNET_PACKAGE", "torch")
    monkeypatch.setattr("e2enet.configuration.conflicts._login_problem", lambda: None)
    monkeypatch.setattr("e2enet.configuration.conflicts.trainer_problem", lambda _: None)
    for path in (Path(word.removeprefix("resume=")) for word in arguments if word.startswith("resume=")):
        folder = path.parents[1] if path.suffix == ".ckpt" else path  # a run or one of its checkpoints
        write_config(folder / CONFIG_FILE, compose_config())
        for checkpoint in (folder / LAST_CHECKPOINT, *([path] if folder != path else [])):
            checkpoint.parent.mkdir(exist_ok=True)
            torch.save({KEY: {"step": 1, "rows": 0, "generators": {}, "identity": {}}, "state_dict": {}}, checkpoint)
    for folder in (Path(word.partition("=")[2]) for word in arguments if word.startswith("initial_weights=")):
        (folder / "checkpoints").mkdir(parents=True)
        torch.save({"hyper_parameters": {}}, folder / "checkpoints" / "best.ckpt")
    check_command_line([word for word in arguments if word != "SETTINGS"])  # a placeholder


def test_documented_mistakes_are_reported_like_that() -> None:
    transcripts = [code for document in DOCUMENTS for code in blocks(document, "") if code.startswith(PROMPT)]
    assert transcripts
    for transcript in transcripts:
        command, _, output = transcript.partition("\n")
        with pytest.raises(InputError) as caught:
            check_command_line(shlex.split(command)[3:])
        assert output.strip() == f"error: {caught.value}"


@pytest.mark.parametrize("arguments", arguments_of("nnunet"), ids=" ".join)
def test_nnunet_commands_are_understood(arguments: list[str]) -> None:
    given = make_parser().parse_args(arguments)
    assert callable(given.run)
    if "settings" in given:
        compose_dsff(given.settings)


@pytest.mark.parametrize("arguments", arguments_of("predict"), ids=" ".join)
def test_predict_commands_compose(arguments: list[str]) -> None:
    given = {argument.partition("=")[0] for argument in arguments}
    # Text may name a key alone: `e2enet predict mirror=false`.
    arguments = [*arguments, *(f"{key}=PATH" for key in ("checkpoint", "input", "output") if key not in given)]
    check_arguments(arguments, str(CONF))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        read_config(compose("predict", arguments))


@pytest.mark.parametrize("arguments", arguments_of("check"), ids=" ".join)
def test_check_commands_compose(arguments: list[str]) -> None:
    compose_data(arguments, check.OPTIONS)


@pytest.mark.parametrize("arguments", arguments_of("prepare"), ids=" ".join)
def test_prepare_commands_compose(arguments: list[str]) -> None:
    compose_data(arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, given) for name in ("evaluate", "report", "view", "export") for given in arguments_of(name) if given],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_other_commands_parse(name: str, arguments: list[str]) -> None:
    program = importlib.import_module(f"{COMMANDS[name].module}.__main__")
    program._parser().parse_intermixed_args(arguments)


def test_documented_commands_exist() -> None:
    named = {name for name, _ in documented_calls() if name != "COMMAND"}
    assert named - {"--help", "--version"} == set(COMMANDS)


def test_documented_lookalikes_exist() -> None:
    calls = [words for document in DOCUMENTS for words in commands(document) if "e2enet.data.synthetic" in words]
    assert {words[words.index("e2enet.data.synthetic") + 1] for words in calls} == set(LOOKALIKES)


def test_documented_modules_exist() -> None:
    calls = [words for document in DOCUMENTS for words in commands(document) if words[:2] == ["python", "-m"]]
    modules = {words[2] for words in calls}
    assert {"pip", "pytest", "e2enet.evaluation.out_of_fold"} <= modules
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_every_choice_of_every_group_is_documented() -> None:
    text = (PROJECT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    documented = {group: sorted(re.findall(r"`(\w+)`", choices)) for group, choices in rows.items()}
    folders = [folder for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"]
    assert documented == {name: list(group_options(name)) for name in [*(f.name for f in folders), "experiments"]}


def test_every_extra_is_documented() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^(\w+) = \[", text.partition("\n[")[0], re.MULTILINE)
    page = (PROJECT / "docs" / "installation.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    assert len(extras) > 5 and sorted(extras) == sorted(re.findall(r"`(\w+)`", " ".join(cells)))


def test_the_readme_marks_the_two_commands_of_the_gate() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    marked = dict(re.findall(r"^<!-- ci: (\w+) -->\n```bash\n(.+)\n```$", text, re.MULTILINE))
    tests = "&& python -m pytest -n 2 --dist loadfile"
    assert marked["main"].endswith("&& python train.py") and marked["tests"].endswith(tests)


@pytest.mark.parametrize(("name", "page"), [("draw.py", "concepts.md"), ("draw_tile.py", "engine_internals.md")])
def test_figures_are_drawn_by_their_script(
    name: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "docs" / "figures")  # as for `python docs/figures/NAME`
    script = runpy.run_path(str(PROJECT / "docs" / "figures" / name))
    drawn = script["main"](tmp_path)
    for path in drawn:
        assert path.stat().st_size > 10_000
        assert (PROJECT / "docs" / "figures" / path.name).is_file()
        assert f"figures/{path.name}" in (PROJECT / "docs" / page).read_text(encoding="utf-8")
