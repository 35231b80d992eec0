"""What cloud-init is told."""

from __future__ import annotations

from email import message_from_string

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.control.firstboot import user_data
from roost.model.machine import Machine, MachineSpec

KEY = "ssh-ed25519 AAAA roost"
WEB = Machine(name="web", spec=MachineSpec(image="x", ssh_keys=("ssh-ed25519 BBBB me",)))


def test_an_image_with_our_agent_gets_only_what_the_user_wrote() -> None:
    own = msgspec.structs.replace(WEB.spec, user_data="#!/bin/sh\n")
    assert user_data(msgspec.structs.replace(WEB, spec=own), None) == "#!/bin/sh\n"
    assert user_data(WEB, None) is None


def test_an_image_without_our_agent_lets_us_in() -> None:
    document = user_data(WEB, KEY)
    assert document is not None
    assert yaml.safe_load(document) == {
        "disable_root": False,
        "users": ["default", {"name": "root", "ssh_authorized_keys": [KEY]}],
        "ssh_authorized_keys": ["ssh-ed25519 BBBB me"],
    }


def test_both_documents_reach_cloud_init() -> None:
    own = msgspec.structs.replace(WEB.spec, user_data="#!/bin/sh\necho hello\n")
    document = user_data(msgspec.structs.replace(WEB, spec=own), KEY)
    assert document is not None
    types = [part.get_content_type() for part in message_from_string(document).walk()]
    assert types == ["multipart/mixed", "text/cloud-config", "text/x-shellscript"]


@pytest.mark.fault(58)
@settings(max_examples=25)
@given(st.text(max_size=60))
def test_no_key_breaks_out_of_the_document(comment: str) -> None:
    spec = MachineSpec(image="x", ssh_keys=(f"ssh-ed25519 BBBB {comment}",))
    document = user_data(Machine(name="web", spec=spec), KEY)
    assert document is not None
    assert set(yaml.safe_load(document)) == {"disable_root", "users", "ssh_authorized_keys"}
