"""The OpenAPI document is complete and consistent: every route, every schema, every parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from litestar.openapi.spec import OpenAPI

from roost.api import openapi
from roost.model.kinds import KINDS
from tests.unit.api.test_isolation import ROUTES
from tests.unit.api.world import world

DOCUMENT = msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES, "1.2.3")))


def walk(value: Any) -> Iterator[Any]:
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]


async def test_it_is_served() -> None:
    async with world() as w:
        served = (await w.call("GET", "/openapi.json")).json
        assert served["openapi"] == "3.1.0"
        assert set(DOCUMENT["paths"]) == set(served["paths"])


def test_it_has_only_the_fields_that_openapi_knows() -> None:
    known = {field.lstrip("_") for field in OpenAPI.__dataclass_fields__}
    assert set(DOCUMENT) <= known
    assert {"title", "version"} <= set(DOCUMENT["info"])


def test_every_reference_leads_somewhere() -> None:
    references = {value["$ref"] for value in walk(DOCUMENT) if isinstance(value, dict) and "$ref" in value}
    assert references <= {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_its_schema_with_all_its_fields(kind: Any) -> None:
    schema = DOCUMENT["components"]["schemas"][kind.type.__name__]
    assert set(schema["properties"]) == set(kind.type.__struct_fields__)
    assert schema["additionalProperties"] is False


def test_every_operation_has_a_name_of_its_own_and_answers() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    assert all({"404", "409", "500"} < set(operation["responses"]) for _, _, operation in operations())
    assert all(
        re.fullmatch(r"[1-5]\d\d", status) for _, _, operation in operations() for status in operation["responses"]
    )


def test_every_path_parameter_is_declared() -> None:
    for path, _, operation in operations():
        declared = {given["name"] for given in operation.get("parameters", ()) if given["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_writes_take_an_idempotency_key_and_a_body_of_their_kind() -> None:
    create = DOCUMENT["paths"]["/v1/machines"]["post"]
    assert "Idempotency-Key" in {given["name"] for given in create["parameters"]}
    assert create["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Machine"}
    assert create["responses"]["201"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Machine"
    }
