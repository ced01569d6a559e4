"""Build a layout from the section in a checkpoint, which may come from an untrusted source."""

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
    """Build the layout of a section `data.layout`.

    Importing and calling a class that a checkpoint names could run any code. So only the project's own classes are
    built by default, from plain values.

    Args:
        section: Expected to hold `_target_` and the arguments; may be anything.
        trusted: Names of classes that the user trusts.

    Raises:
        InputError: the section is not that of a layout, its class is not trusted, or the layout cannot be built.
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
    except Exception as error:  # an unknown class or its arguments may raise anything
        raise InputError(f"its layout, {target}, cannot be built ({first_line(error)})") from error
    if not isinstance(layout, Layout):
        raise InputError(f"its layout, {target}, is no class of {Layout.__module__}.{Layout.__name__}")
    return layout
