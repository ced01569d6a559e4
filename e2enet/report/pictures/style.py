"""The style of every picture: colours for colour-blind readers, consistent font sizes, one way to save.

A row of an experiment has the same colour, marker and line in all pictures of a page. No two rows share all three, so
colour is never the only difference. The colours are Okabe and Ito's (Color Universal Design, 2008) without yellow,
which is hard to see on white paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from e2enet.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LETTERS = 40  # per line of the legend
WIDTH = 9.6  # inches: at 96 pixels an inch, the width of the page's column
INK, GREY, GRID, PAPER = "#1d2530", "#5f6670", "#d9dde3", "#ffffff"
# The reference row is black; the others take these in turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    # Labels come from outside: a dollar sign in one must not start mathematics.
    "text.parse_math": False,
    # Letters as outlines look the same everywhere; a fixed salt gives the same picture the same bytes.
    "svg.fonttype": "path",
    "svg.hashsalt": "e2enet",
}


@dataclass(frozen=True)
class RowStyle:
    """How one row is drawn: line and marker colour, marker, dashes of its line."""

    colour: str
    marker: str
    dashes: Any


def row_styles(count: int, reference: int | None) -> list[RowStyle]:
    """A style for each of `count` rows; the row at index `reference` is black, with circles and a solid line."""
    others = [
        RowStyle(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i in range(count)
    ]
    if reference is not None:
        others.insert(reference, RowStyle(INK, "o", "-"))
    return others[:count]


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the style to what is drawn and saved inside the block; matplotlib's settings are restored after it."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this size in inches, with a canvas of its own: it needs no display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure atomically, in the format that the ending names (.svg, .pdf, .png at 150 dots an inch)."""
    # No date and no program version: the same numbers give the same file.
    metadata = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=metadata)
    return path


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """Draw one legend below all panels, with as many entries per line as fit; none for a single entry."""
    for handle in handles:
        handle.set_label(wrapped(handle.get_label(), MAX_LETTERS))
    longest = max((len(line) for handle in handles for line in handle.get_label().split("\n")), default=0)
    # A letter of the legend is about 0.075 inches wide. A handle with the space around it is as wide as seven letters.
    columns = int(figure.get_figwidth() / 0.075 / (longest + 7))
    if len(handles) > 1:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), columns)), handlelength=2.6
        )


def wrapped(text: str, letters: int, lines: int = 3) -> str:
    """Wrap the text to at most `lines` lines of at most `letters` letters; the rest is cut off."""
    return "\n".join(wrap(text, letters, max_lines=lines, placeholder=" .."))


def whole_epochs(axes: Axes) -> None:
    """Label the x axis as epochs, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    low, high = axes.get_xlim()
    if high - low < 1:  # one epoch alone: its neighbours give the axis whole numbers
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
