"""What cloud-init is told at the first boot: the user's own data, and, for an image without Roost's agent, how to let Roost in."""

from __future__ import annotations

import json
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

from roost.model.machine import Machine

_TYPES = {"#cloud-config": "cloud-config", "#!": "x-shellscript", "#include": "x-include-url", "## template": "jinja2"}
"""First words of user data to MIME types (cloud-init's documentation, "User-data formats")."""


def user_data(machine: Machine, access_key: str | None) -> str | None:
    """The document for the seed, or None when nothing needs cloud-init.

    `access_key` is the public half of the key by which Roost reaches an image that has no agent of Roost.
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
    """Only what lets us in: the rest of the set-up is done from inside then, as everywhere. JSON is YAML that nothing can break out of."""
    root = {"name": "root", "ssh_authorized_keys": [access_key]}
    return {"disable_root": False, "users": ["default", root], "ssh_authorized_keys": list(machine.spec.ssh_keys)}
