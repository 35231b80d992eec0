"""A project: the tenant that owns everything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from roost.errors import Problem
from roost.model.meta import Meta, Size, Struct

Role = Literal["owner", "operator", "viewer"]
_PRINCIPAL = re.compile(r"uid:\d{1,10}")


class Quota(Struct, frozen=True, kw_only=True):
    """Upper bounds over all machines, programs, networks and volumes of the project (memory: of the first two together; storage: the sizes of all
    volumes, those in the trash too); None is no bound."""

    machines: int | None = None
    programs: int | None = None
    networks: int | None = None
    cpus: int | None = None
    memory: Size | None = None
    volumes: int | None = None
    storage: Size | None = None


class ProjectSpec(Struct, frozen=True, kw_only=True):
    """Who may do what ("uid:1000" -> role), and how much."""

    members: dict[str, Role] = msgspec.field(default_factory=dict)
    quota: Quota = Quota()

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        for principal in self.members:
            if not _PRINCIPAL.fullmatch(principal):
                yield Problem(f"members.{principal}", "is not a principal: write uid:1000")


class ProjectStatus(Struct, frozen=True, kw_only=True):
    """What is."""

    phase: Literal["active", "deleting"] = "active"


class Project(Struct, frozen=True, kw_only=True):
    """The tenant: owns everything, has members with roles and quotas."""

    kind: Literal["project"] = "project"
    project: str = ""
    name: str
    meta: Meta = Meta()
    spec: ProjectSpec = ProjectSpec()
    status: ProjectStatus = ProjectStatus()
