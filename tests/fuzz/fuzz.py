"""Coverage-guided fuzzing of untrusted files: python tests/fuzz/fuzz.py TARGET [libFuzzer's options].

Targets: dataset_json, plan_json, scan, mha, nrrd. Whatever the bytes, only InputError may be raised. Needs atheris
(the extra `fuzz`). New inputs and inputs that crash are kept in a scratch folder. For five minutes:

    python tests/fuzz/fuzz.py dataset_json -max_total_time=300
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

Target = Callable[[bytes], None]
CORPUS = Path(__file__).parent / "corpus"
# Words that the readers look for. Random changes would hardly ever produce them.
WORDS = (
    *("labels", "modality", "channel_names", "training", "test", "validation", "dataset", "numTraining", "name"),
    *("file_ending", "image", "images", "label", ".nii.gz", "../", "/", "background", "\\u0000", "\\ud800", "null"),
    *("spacing", "patch_size", "strides", "batch_size", "normalisation", "median_shape", "depth_axis", "scheme", "ct"),
    *("zscore", "nonzero", "lower", "upper", "mean", "std", "made_from", "options", "planned", "derived", "NaN"),
    *("NDims", "DimSize", "ElementDataFile", "LOCAL", "CompressedDataSize", "MET_FLOAT", "encoding", "gzip", "sizes"),
    *("true", "false", "-1", "0", "1e999", "1e-320", "99999999999999999999", "Infinity", "[[]]", "{}", '""'),
)


def main(arguments: list[str]) -> None:
    """Fuzz one target until libFuzzer ends."""
    import atheris

    name, *options = arguments
    sys.path.insert(0, str(Path(__file__).parents[2]))  # import this checkout, not the installed package
    # Code imported inside `instrument_imports` reports which branches an input took.
    scratch = Path(mkdtemp(prefix=f"fuzz-{name}-"))
    (scratch / "files").mkdir()
    with atheris.instrument_imports(include=["e2enet"]):
        target = targets(scratch / "files")[name]
    words = scratch / "words.txt"
    words.write_text("\n".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in WORDS) + "\n")
    (scratch / "found").mkdir()
    folders = [str(scratch / "found"), str(CORPUS / name)]
    prefix = f"-artifact_prefix={scratch}/"
    print(f"inputs that crash are written to {scratch}", flush=True)
    atheris.Setup([sys.argv[0], *options, f"-dict={words}", prefix, *folders], target)
    atheris.Fuzz()


def targets(folder: Path) -> dict[str, Target]:
    """Return the targets. Each takes the bytes of a file; any exception other than InputError is a finding.

    `folder` must be empty and is used by the targets alone. All inputs share it, as making folders would take most
    of the time.
    """
    from e2enet.common.console import console
    from e2enet.common.errors import InputError
    from e2enet.data.formats.layout import scan_amos, scan_msd, scan_nnunet
    from e2enet.data.formats.volume import read_label, read_volume
    from e2enet.data.planning.plan import Plan
    from e2enet.data.planning.plan_file import settle_plan

    console.quiet = True
    planned = Plan(2, (3.0, 1.0, 1.0), (4, 8, 8), ((1, 2, 2),), 2, ({"scheme": "none"},), (6, 8, 9))
    options = {"kind": "auto", "spacing": None, "memory_gb": 8.0}
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
        (folder / part / "a.nii.gz").touch()

    def dataset_json(content: bytes) -> None:
        (folder / "dataset.json").write_bytes(content)
        for scan in (scan_msd, scan_nnunet, scan_amos):
            problems: list = []
            try:
                scan(folder, problems)
                "\n".join(map(str, problems)).encode("utf-8")  # problems can be printed
            except InputError as error:
                str(error).encode("utf-8")

    def plan_json(content: bytes) -> None:
        path = folder / "plan.json"
        path.write_bytes(content)
        try:
            settle_plan(path, planned, options)
        except InputError as error:
            assert str(path) in str(error), error

    def read_image(ending: str, content: bytes) -> None:
        path = folder / f"a{ending}"
        path.write_bytes(content)
        for read in (lambda: read_volume([path]), lambda: read_label(path, None)):
            try:
                read()
            except InputError as error:
                assert str(path) in str(error), error

    endings = {"scan": ".nii", "mha": ".mha", "nrrd": ".nrrd"}
    images = {name: partial(read_image, ending) for name, ending in endings.items()}
    return {"dataset_json": dataset_json, "plan_json": plan_json, **images}


if __name__ == "__main__":
    main(sys.argv[1:])
