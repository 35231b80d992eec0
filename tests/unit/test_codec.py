"""Documents to objects: strict, and every mistake told at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import Invalid
from roost.model import codec
from roost.model.kinds import KINDS
from roost.model.machine import Machine
from roost.model.meta import GiB

TEN_MISTAKES = {
    "kind": "machine",
    "name": "web",
    "spec": {
        "image": "Not A Name",
        "cpus": 0,
        "memory": "12XB",
        "disk": 100,
        "arch": "vax",
        "power": "off",
        "colour": "red",
        "publish": [{"host_port": 0, "guest_port": 80}, "80"],
        "users": [{"ssh_keys": ["x"]}],
        "stop_grace": -1,
    },
}


def problems_of(document: object) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        codec.decode(document, Machine, "machine was not created")
    return dict(caught.value.problems)


def test_ten_mistakes_are_told_at_once_each_at_its_place() -> None:
    assert set(problems_of(TEN_MISTAKES)) == {
        "spec.image",
        "spec.cpus",
        "spec.memory",
        "spec.disk",
        "spec.arch",
        "spec.power",
        "spec.colour",
        "spec.publish[0].host_port",
        "spec.publish[1]",
        "spec.users[0].name",
        "spec.stop_grace",
    }


def test_an_unknown_field_names_the_known_ones() -> None:
    assert "cpus" in problems_of({"name": "web", "spec": {"image": "tiny", "cpu": 1}})["spec.cpu"]


def test_sizes_may_be_written_with_units() -> None:
    machine = codec.decode({"name": "web", "spec": {"image": "tiny", "memory": "2GiB", "disk": "20G"}}, Machine, "x")
    assert (machine.spec.memory, machine.spec.disk) == (2 * GiB, 20 * GiB)


def test_a_deep_document_is_refused_not_recursed_into() -> None:
    assert codec.MAX_DEPTH < 100
    with pytest.raises(Invalid):
        codec.loads(b'{"name":"x","spec":' + b"[" * 100_000 + b"]" * 100_000 + b"}", Machine, "x")


def test_an_object_survives_the_store() -> None:
    machine = codec.decode(
        {"name": "web", "spec": {"image": "tiny", "publish": [{"host_port": 1, "guest_port": 2}]}}, Machine, "x"
    )
    assert codec.stored(codec.encode(machine), Machine) == machine


def test_every_kind_has_a_schema() -> None:
    schemas = codec.schema(tuple(kind.type for kind in KINDS))
    assert {kind.type.__name__ for kind in KINDS} <= set(schemas)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Machine.__struct_fields__, "image", "cpus", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_decoded_or_refused_with_reasons(document: object) -> None:
    try:
        codec.decode(document, Machine, "x")
    except Invalid as error:
        assert error.problems
