"""What cloud-init is told at the first boot: the user's own data, and, for an image without Roost's agent, the set-up too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

from roost.model.machine import Machine

_TYPES = {"#cloud-config": "cloud-config", "#!": "x-shellscript", "#include": "x-include-url", "## template": "jinja2"}
"""First words of user data to MIME types (cloud-init's documentation, "User-data formats")."""


def user_data(machine: Machine, access_key: str | None) -> str | None:
    """The document for the seed, or None when nothing needs cloud-init.

    `access_key` is the public half of the key by which Roost reaches an image that has no agent of Roost: then the host
    name, keys and users that the agent would set come from here too.
    """
    own = machine.spec.user_data
    if access_key is None:
        return own
    setup = "#cloud-config\n" + json.dumps(_setup(machine, access_key), indent=1) + "\n"
    if own is None:
        return setup
    both = MIMEMultipart()
    for text in (setup, own):
        kind = next((kind for start, kind in _TYPES.items() if text.startswith(start)), "cloud-config")
        part = MIMEText(text, kind, "utf-8")
        # Lists (users, keys) of the two documents are joined; of single values the user's, which comes last, wins.
        part.add_header("Merge-Type", "list(append)+dict(recurse_array)+str()")
        both.attach(part)
    return both.as_string()


def _setup(machine: Machine, access_key: str) -> dict[str, Any]:
    """A cloud-config document; written as JSON, which is YAML that nothing can break out of."""
    return {
        "hostname": machine.spec.hostname or machine.name,
        "disable_root": False,
        "users": list(_users(machine, access_key)),
        "ssh_authorized_keys": list(machine.spec.ssh_keys),
    }


def _users(machine: Machine, access_key: str) -> Iterator[str | dict[str, Any]]:
    yield "default"
    yield {"name": "root", "ssh_authorized_keys": [access_key, *machine.spec.ssh_keys]}
    for user in machine.spec.users:
        made: dict[str, Any] = {"name": user.name, "shell": "/bin/bash", "ssh_authorized_keys": list(user.ssh_keys)}
        yield made | ({"sudo": "ALL=(ALL) NOPASSWD:ALL"} if user.sudo else {})
