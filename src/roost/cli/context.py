"""What a verb has at hand that talks to the daemon: a connection that opens at need."""

from __future__ import annotations

from argparse import Namespace
from functools import cached_property
from typing import Any

from roost.cli.output import Output
from roost.client.blocking.session import Session
from roost.client.endpoint import find
from roost.client.protocol import path


class Context(Output):
    """The surroundings of a verb, with the daemon. `autostart` off: none is started for this."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        self.autostart = True

    @cached_property
    def session(self) -> Session:
        """The daemon; it is started when none runs and the first request needs it."""
        return Session(find(self.host), autostart=self.autostart, on_other_build=self.warn)

    def items(self, plural: str, **query: str | int | None) -> list[dict[str, Any]]:
        """All objects of a kind, as the API gives them."""
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            page = self.session.call("GET", path(plural, limit=500, continue_=token, **query))
            found += page["items"]
            token = page.get("continue")
            if not token:
                return found

    def close(self) -> None:
        """Hang up."""
        if "session" in self.__dict__:
            self.session.close()
