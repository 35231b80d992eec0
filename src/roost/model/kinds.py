"""The register of kinds: API routes, verbs, SDK collections and schemas derive from it."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from roost.errors import NotFound
from roost.model.event import Event
from roost.model.forward import Forward
from roost.model.image import Image
from roost.model.machine import Machine
from roost.model.meta import IMAGE_NAME, NAME, SNAPSHOT_NAME
from roost.model.network import Network
from roost.model.node import Node
from roost.model.pool import Pool
from roost.model.program import Program
from roost.model.project import Project
from roost.model.ruleset import RuleSet
from roost.model.snapshot import Snapshot
from roost.model.volume import VOLUME_NAME, Volume, VolumeSnapshot

Object: TypeAlias = (
    Machine
    | Program
    | Network
    | RuleSet
    | Forward
    | Image
    | Snapshot
    | Pool
    | Volume
    | VolumeSnapshot
    | Node
    | Project
    | Event
)


class Kind(NamedTuple):
    """How a kind is named and what users may do with it: `scoped` kinds live inside a project, `writable` ones have a spec users write."""

    name: str
    plural: str
    type: type[Object]
    pattern: re.Pattern[str] = NAME
    scoped: bool = True
    writable: bool = True
    finalized: bool = False
    """Whether deletion waits for a reconciler to clean up."""


KINDS: tuple[Kind, ...] = (
    Kind("machine", "machines", Machine, finalized=True),
    Kind("program", "programs", Program, finalized=True),
    Kind("network", "networks", Network, finalized=True),
    Kind("ruleset", "rulesets", RuleSet, finalized=True),
    Kind("forward", "forwards", Forward, finalized=True),
    Kind("image", "images", Image, IMAGE_NAME, finalized=True),
    Kind("snapshot", "snapshots", Snapshot, SNAPSHOT_NAME, finalized=True),
    Kind("pool", "pools", Pool, scoped=False, finalized=True),
    Kind("volume", "volumes", Volume, VOLUME_NAME, finalized=True),
    Kind("volumesnapshot", "volumesnapshots", VolumeSnapshot, SNAPSHOT_NAME, finalized=True),
    Kind("node", "nodes", Node, writable=False),
    Kind("project", "projects", Project, scoped=False),
    Kind("event", "events", Event, re.compile(r"[0-9a-z-]{1,80}"), writable=False),
)

BY_NAME = {word: kind for kind in KINDS for word in (kind.name, kind.plural)}
"""Every kind by its singular and its plural."""


def find(word: str) -> Kind:
    """The kind called `word` (singular or plural, any case). Raises NotFound."""
    kind = BY_NAME.get(word.lower())
    if kind is None:
        raise NotFound(f"kind {word!r} does not exist", fix="one of: " + ", ".join(kind.name for kind in KINDS))
    return kind


def key_of(kind: Kind, project: str, name: str) -> str:
    """Where the object lives in the store: `machines/default/web`, `projects/default`."""
    return f"{kind.plural}/{project}/{name}" if kind.scoped else f"{kind.plural}/{name}"


def prefix_of(kind: Kind, project: str | None = None) -> str:
    """What the keys of a kind (in one project) begin with."""
    return f"{kind.plural}/{project}/" if kind.scoped and project is not None else f"{kind.plural}/"
