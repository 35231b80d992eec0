"""Documents: all problems of all of them at once, and differences field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost.client.documents import check, difference
from roost.errors import Invalid
from roost.model import codec
from roost.model.machine import Machine, MachineSpec


def document(name: Any = "web", **spec: Any) -> dict[str, Any]:
    return {"kind": "machine", "name": name, "spec": {"image": "tiny", **spec}}


def present(**spec: Any) -> dict[str, Any]:
    """A machine as the API gives it."""
    found: dict[str, Any] = json.loads(codec.encode(Machine(name="web", spec=MachineSpec(image="tiny", **spec))))
    return found


def test_all_problems_of_all_documents_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        check(
            [
                document(cpus=0, memory="much"),
                {"kind": "robot", "name": "x"},
                document("Not A Name", colour="red"),
                "text",
            ],
            "default",
        )
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {"machine web: spec.cpus", "machine web: spec.memory", "robot x: kind", "machine Not A Name: name"}
    assert paths >= {"machine Not A Name: spec.colour", "document 4:"}


def test_what_get_printed_can_be_applied() -> None:
    (ready,) = check([present(memory=1 << 30)], "default")
    assert set(ready) == {"kind", "name", "project", "spec"}


def test_documents_without_a_project_go_to_the_callers() -> None:
    assert check([document()], "lab")[0]["project"] == "lab"
    assert check([{**document(), "project": "other"}], "lab")[0]["project"] == "other"


@pytest.mark.parametrize("kind", ["node", "event"])
def test_what_only_roost_writes_can_not_be_applied(kind: str) -> None:
    with pytest.raises(Invalid, match="not valid"):
        check([{"kind": kind, "name": "x"}], "default")


def test_an_empty_file_is_a_mistake() -> None:
    with pytest.raises(Invalid):
        check([], "default")


def test_what_the_api_gave_differs_in_nothing() -> None:
    assert (
        difference(
            present(cpus=2), {"kind": "machine", "project": "default", "name": "web", "spec": present(cpus=2)["spec"]}
        )
        == ()
    )


def test_sizes_are_compared_as_bytes() -> None:
    assert difference(present(memory=1 << 30), document(memory="1GiB")) == ()


def test_only_fields_that_are_named_differ() -> None:
    lines = difference(present(cpus=2, memory=1 << 30), document(memory="2GiB"))
    assert lines == (("spec.memory", 1 << 30, 2 << 30),)


def test_lists_differ_as_a_whole() -> None:
    lines = difference(present(), document(publish=[{"host_port": 1, "guest_port": 2}]))
    assert [path for path, _, _ in lines] == ["spec.publish"]


def test_labels_are_compared_too() -> None:
    lines = difference(present(), {**document(), "meta": {"labels": {"a": "b"}}})
    assert lines == (("meta.labels.a", None, "b"),)
