"""An event: something that happened to an object, kept for a while."""

from __future__ import annotations

from typing import Literal

from roost.model.meta import Meta, Struct


class EventSpec(Struct, frozen=True, kw_only=True):
    """What happened. `reason` is one CamelCase word for programs, `message` a sentence for people, `time` is UTC."""

    about: str
    uid: str
    reason: str
    message: str
    time: str
    level: Literal["info", "warning", "error"] = "info"


class EventStatus(Struct, frozen=True, kw_only=True):
    """Events have no status: they are what was."""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to an object; written by Roost only, removed after a time."""

    kind: Literal["event"] = "event"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: EventSpec
    status: EventStatus = EventStatus()
