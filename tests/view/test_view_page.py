"""The page in a browser, opened from disk: each class's colour is where the label is, and keys do what the page says.

Chromium draws by SwiftShader, so no GPU is needed. Without Chromium the tests skip and say so.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from e2enet.inference.contours import COLOURS
from e2enet.view.agreement import CONFUSED, EXTRA, MISSED
from e2enet.view.find import find_entries
from e2enet.view.write import DIFFERENCE_COLOURS, write_viewer
from tests.view.conftest import MARKUP, awkward_affine, predicted_values, reference_values, save

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REASON = "no Chromium here (apt-get install chromium): the viewer's page is not opened"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)
PATIENCE = 120  # seconds
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"),
    *("--enable-unsafe-swiftshader", "--hide-scrollbars", "--window-size=1280,800"),
)
# The height is fixed, since Chromium gives the page its whole window only when it takes the picture. It takes it when
# all images are loaded, so an image that the test's server holds back makes it wait for the probe.
PROBE = """
(async () => {
document.body.style.height = "640px";
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const until = async ready => { while (!ready()) await new Promise(resolve => setTimeout(resolve, 20)); };
const settled = number => until(() => document.body.dataset.state !== "loading" && state.current === number);
  await until(() => ["ready", "failed"].includes(document.body.dataset.state));
  const first = state.current;
  press("ArrowDown");
  await settled(state.order[1]);
  const second = state.current;
  press("ArrowUp");
  await settled(first);
  // Leave the other case while its volumes are made, and let that end after the return.
  const make = niivue.NVImage.new;
  let release = null;
  niivue.NVImage.new = (...given) => new Promise(done => { release = () => done(make.apply(niivue.NVImage, given)); });
  press("ArrowDown");
  await until(() => release);
  niivue.NVImage.new = make;
  press("ArrowUp");
  await settled(first);
  release();
  await new Promise(resolve => setTimeout(resolve, 500));
  const late = { address: location.hash, isOwn: state.data.scan === state.panes[0].scan };
  for (const key of KEYS) press(key);
  await until(() => state.fill !== "probability" || $("position").textContent.includes("probability"));
  for (const pane of state.panes) pane.planes.setIsOrientationTextVisible(false);
  setOpacity(1);
  await until(() => state.panes.every(pane => [pane.planesCanvas, pane.solidCanvas].every(
    canvas => canvas.width === canvas.clientWidth && canvas.height === canvas.clientHeight)));
  for (const pane of state.panes) pane.planes.drawScene();
  const panes = state.panes.map(pane => {
    const corner = pane.lines.getBoundingClientRect();
    return tilesOf(pane.planes, pane.scan.dims).map(({ across, up, axis, slice, at }) => {
      const [x, y] = at(0, 0), [dx] = at(1, 0).map((value, place) => value - [x, y][place]);
      return { across, up, axis, slice, x: corner.x + x, y: corner.y + y, dx, dy: at(0, 1)[1] - y };
    });
  });
  const solid = state.panes[0].solidCanvas.getBoundingClientRect();
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  await fetch("SERVER/found", { method: "POST", mode: "no-cors", body: JSON.stringify({
    first, second, late, panes, solid, fill: document.body.dataset.fill, order: state.order,
    message: document.querySelector("#message").textContent, position: $("position").textContent,
    titles: state.panes.map(pane => pane.title.innerText),
    keys: ["difference", "probability"].filter(name => !$(`${name}-key`).hidden),
    title: document.title, legend: [...document.querySelectorAll("#legend [data-value]")].map(row => row.textContent),
    scripts: document.body.querySelectorAll("script").length,
  }) });
})();
"""


@pytest.fixture
def viewer(dataset: Path) -> Path:
    """The page of both cases, with the right prediction of the one and the wrong one of the other."""
    found = find_entries([dataset / "predictions"], labels=dataset / "labelsTs")
    return write_viewer(dataset / "viewer", MARKUP, found.entries).page


class Waiting(BaseHTTPRequestHandler):
    """Takes what the probe found, and lets the image that the page waits for load only then."""

    found: dict[str, Any] | None = None
    is_found = threading.Event()

    def do_POST(self) -> None:
        type(self).found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.is_found.set()
        self.answer()

    def do_GET(self) -> None:
        self.is_found.wait(PATIENCE)
        self.answer()

    def answer(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def browse(page: Path, keys: str) -> tuple[dict[str, Any], np.ndarray]:
    """Open the page, press keys and return what a script in it found, and the picture (H, W, RGB in 0..255)."""
    assert CHROMIUM is not None
    handler = type("Handler", (Waiting,), {"is_found": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (page.parent / "probe.js").write_text(PROBE.replace("KEYS", json.dumps(keys)).replace("SERVER", address))
        text = page.read_text(encoding="utf-8")
        for policy in ("img-src", "connect-src"):  # the page itself may reach no server
            text = text.replace(policy, f"{policy} {address}", 1)
        probe = f'<script src="probe.js"></script><img src="{address}/wait" alt="" hidden></body>'
        probed = page.with_name("probed.html")
        probed.write_text(text.replace("</body>", probe), encoding="utf-8")
        picture = page.with_name("picture.png")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", f"--screenshot={picture}"]
        done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=PATIENCE)
        server.shutdown()
    assert handler.found is not None, done.stderr[-3000:]
    return handler.found, matplotlib.image.imread(picture)[..., :3] * 255


def check_colours(
    tiles: list[dict[str, Any]],
    picture: np.ndarray,
    labels: np.ndarray,
    colours: dict[int, str],
    places: Sequence[tuple[float, float]] = ((0.5, 0.5), (0.2, 0.8)),
) -> None:
    """Check the colour at places of every voxel of each tile's slice: off the middle, it would be mixed if smoothed."""
    expected = {value: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for value, colour in colours.items()}
    seen = set()
    for tile in tiles:
        plane = labels.take(tile["slice"], tile["axis"])
        assert tile["across"] < tile["up"]
        for (i, j), (right, up) in product(np.ndindex(*plane.shape), places):
            colour = picture[pixel(tile, i + right, j + up)]
            if plane[i, j]:
                np.testing.assert_allclose(colour, expected[int(plane[i, j])], atol=3, err_msg=f"{tile} {i} {j}")
                seen.add(int(plane[i, j]))
            else:
                assert np.ptp(colour) <= 12, f"not the grey of the scan: {colour} at {i} {j} of {tile}"
    assert seen == set(colours)


def check_outlines(tiles: list[dict[str, Any]], picture: np.ndarray, labels: np.ndarray) -> None:
    """Check that there is white along every edge between two labels and nowhere else on the edges of voxels."""
    for tile in tiles:
        plane = labels.take(tile["slice"], tile["axis"]).astype(int)
        for right, up in ((1, 0), (0, 1)):  # the next voxel across, and up
            for i, j in np.ndindex(plane.shape[0] - right, plane.shape[1] - up):
                row, column = pixel(tile, i + (right or 0.5), j + (up or 0.5))
                whitest = picture[row - 1 : row + 2, column - 1 : column + 2].min(axis=-1).max()
                if plane[i, j] != plane[i + right, j + up]:
                    assert whitest > 150, f"{whitest} at {i} {j} of {tile}"
                else:
                    assert whitest < 150, f"{whitest} at {i} {j} of {tile}"


def pixel(tile: dict[str, Any], i: float, j: float) -> tuple[int, int]:
    """Return row and column of a place in a tile, counted in voxels from the corner of the first."""
    return int(tile["y"] + j * tile["dy"]), int(tile["x"] + i * tile["dx"])


def as_ras(values: np.ndarray) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(values, awkward_affine())).dataobj)


def check_list_and_names(found: dict[str, Any]) -> None:
    """Check that the worst case came first, that keys stepped to the other and back, and that names stayed texts."""
    assert found["order"] == [1, 0] and (found["first"], found["second"]) == (1, 0)  # poor, good
    assert found["late"] == {"address": "#case=1", "isOwn": True}  # the case that was left stays left
    assert found["title"] == MARKUP and found["legend"][1].startswith(MARKUP)
    assert found["scripts"] == 7  # those of the page and the probe


@pytest.mark.parametrize("key", ["1", "2", "3"])
def test_each_colour_is_where_its_label_is(viewer: Path, key: str) -> None:
    # Each run hides the crosshair (c); the last one hides the scan too (s), and not the outline (r).
    found, picture = browse(viewer, key + ("cs" if key == "3" else "rc"))
    assert found["message"] == ""
    predicted, true = as_ras(predicted_values()), as_ras(reference_values())
    classes = {value: COLOURS[value - 1] for value in (1, 2, 3)}
    difference = np.select(
        [(true > 0) & (predicted == 0), (true == 0) & (predicted > 0), true != predicted], [MISSED, EXTRA, CONFUSED], 0
    )
    errors = dict(zip((MISSED, EXTRA, CONFUSED), DIFFERENCE_COLOURS, strict=True))
    shown = {"1": ("prediction", predicted, classes), "2": ("reference", true, classes)}
    fill, labels, colours = {**shown, "3": ("difference", difference, errors)}[key]
    assert found["fill"] == fill
    check_list_and_names(found)
    (tiles,) = found["panes"]
    assert [tile["axis"] for tile in tiles] == [2, 1, 0]  # axial, coronal, sagittal
    # Right, front and head come first: on the left and on top.
    assert all(tile["dx"] < 0 and tile["dy"] < 0 for tile in tiles)
    # True proportions: voxels of 1 x 1.5 x 2 mm.
    spacing = np.array([1.0, 1.5, 2.0])
    for tile in tiles:
        assert tile["dx"] / tile["dy"] == pytest.approx(spacing[tile["across"]] / spacing[tile["up"]], rel=0.02)
    if key == "3":
        check_colours(tiles, picture, labels, colours, [(0.5, 0.5)])
        check_outlines(tiles, picture, true)
    else:
        check_colours(tiles, picture, labels, colours)
    solid = picture[round(found["solid"]["top"]) : 640, round(found["solid"]["left"]) : round(found["solid"]["right"])]
    assert np.count_nonzero(np.ptp(solid, axis=-1) > 60) > 500  # coloured surfaces, whatever their shading


def test_probabilities_are_coloured_and_told(dataset: Path) -> None:
    """Class 1 is certain where it is predicted and nowhere else. The second prediction has no probabilities."""
    predicted = predicted_values() == 1
    stored = np.stack([~predicted, predicted, 0 * predicted, 0 * predicted]).astype(np.float16)
    np.savez(dataset / "predictions" / "poor.npz", probabilities=stored)
    record = dataset / "predictions" / ".predicted" / "poor.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"more": [".npz"]}))
    others = dataset / "others"
    for case in ("good", "poor"):
        save(others / f"{case}.nii.gz", reference_values())
    found = find_entries([dataset / "predictions", others], labels=dataset / "labelsTs")
    probed, picture = browse(write_viewer(dataset / "viewer", "title", found.entries).page, "4rc")
    assert probed["message"] == "" and (probed["fill"], probed["keys"]) == ("probability", ["probability"])
    assert re.fullmatch(r"A: predictions Dice [0-9.]+ %", probed["titles"][0])
    assert probed["titles"][1] == "B: others Dice 100.0 %, no probability kept"
    tiles, _ = probed["panes"]
    at = tuple(next(tile["slice"] for tile in tiles if tile["axis"] == axis) for axis in range(3))
    expected = float(as_ras(predicted.astype(np.uint8))[at])
    assert f"probability A {expected:.2f}" in probed["position"] and "probability B" not in probed["position"]
    check_colours(tiles, picture, as_ras(predicted.astype(np.uint8)), {1: "#FFFADC"})


def test_two_predictions_stand_side_by_side(dataset: Path) -> None:
    shutil.copytree(dataset / "predictions", dataset / "others")
    shutil.copy(dataset / "others" / "good.nii.gz", dataset / "others" / "poor.nii.gz")
    found = find_entries([dataset / "predictions", dataset / "others"], labels=dataset / "labelsTs")
    page = write_viewer(dataset / "viewer", "two", found.entries).page
    probed, picture = browse(page, "1rc")
    left, right = probed["panes"]
    assert left[0]["x"] < right[0]["x"]
    assert [tile["slice"] for tile in left] == [tile["slice"] for tile in right]
    colours = {value: COLOURS[value - 1] for value in (1, 2, 3)}
    check_colours(left, picture, as_ras(predicted_values()), colours)
    check_colours(right, picture, as_ras(reference_values()), colours)
