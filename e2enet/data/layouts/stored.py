"""Layouts from the section that a checkpoint keeps, which may be anybody's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from e2enet.common.errors import InputError, first_line
from e2enet.common.signatures import build_part
from e2enet.data.layouts.described import AMOSLayout, MSDLayout, NNUNetLayout
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.layout import Layout
from e2enet.data.layouts.phantom import PhantomLayout

OWN = {
    f"{layout.__module__}.{layout.__qualname__}": layout
    for layout in (FolderLayout, MSDLayout, NNUNetLayout, AMOSLayout, PhantomLayout)
}


def stored_layout(section: Any, trusted: Collection[str] = ()) -> Layout:
    """The layout of a section `data.layout`.

    Importing a class and calling it with what a checkpoint says could run anything, so that the project's own alone are
    built unasked, of plain values.

    Args:
        section: `_target_` and the arguments, or anything.
        trusted: Names of classes that the user trusts.

    Raises:
        InputError: it is no section of a layout, or that of a class that nobody trusts.
    """
    target = section.get("_target_") if isinstance(section, dict) else None
    if not isinstance(target, str):
        raise InputError("its layout is no section with _target_")
    if target not in OWN and target not in trusted:
        raise InputError(
            f"its layout, {target}, is none of e2enet, and a checkpoint could name any code; if it is known to you, "
            f"trust=[{target}] reads folders by it"
        )
    try:
        arguments = {key: value for key, value in section.items() if key != "_target_"}
        layout = OWN[target](**arguments) if target in OWN else build_part(section)
    except Exception as error:  # of a class or arguments that are anybody's
        raise InputError(f"its layout, {target}, cannot be built ({first_line(error)})") from error
    if not isinstance(layout, Layout):
        raise InputError(f"its layout, {target}, is no class of {Layout.__module__}.{Layout.__name__}")
    return layout
