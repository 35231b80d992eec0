"""The register of templates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from roost.errors import NotFound, Unavailable
from roost.model.meta import Arch
from roost.storage import debian, tiny
from roost.storage.template import Template

TEMPLATES: tuple[Template, ...] = (*tiny.TEMPLATES, *debian.TEMPLATES)


def find(templates: Sequence[Template], name: str, arch: Arch, others: Iterable[str] = ()) -> Template:
    """The template called `name` for `arch`. Raises NotFound, or Unavailable when it exists for other architectures only.

    `others` are names that would have done as well, for the message.
    """
    named = [template for template in templates if template.name == name]
    if not named:
        known = dict.fromkeys((*(template.name for template in templates), *others))
        raise NotFound(f"template {name!r} does not exist", fix=f"one of: {', '.join(known)}")
    for template in named:
        if template.arch == arch:
            return template
    arches = ", ".join(template.arch for template in named)
    raise Unavailable(
        f"template {name} cannot be built for {arch}",
        f"it exists for {arches}",
        f"--arch {named[0].arch}, or launch tiny",
    )
