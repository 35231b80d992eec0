"""Who may do what."""

from __future__ import annotations

import pytest

from roost.model.access import Answer, Principal, Verb, may
from roost.model.project import Role

ADMIN, ANN = Principal("uid:0", admin=True), Principal("uid:1000")
HIDDEN, SEEN, ALLOWED = Answer(False, False), Answer(True, False), Answer(True, True)

CASES: list[tuple[Principal, Verb, str, dict[str, Role], Answer]] = [
    (ADMIN, "delete", "machine", {}, ALLOWED),
    (ANN, "get", "machine", {}, HIDDEN),
    (ANN, "exec", "machine", {"uid:1001": "owner"}, HIDDEN),
    (ANN, "get", "machine", {"uid:1000": "viewer"}, ALLOWED),
    (ANN, "exec", "machine", {"uid:1000": "viewer"}, SEEN),
    (ANN, "console", "machine", {"uid:1000": "operator"}, ALLOWED),
    (ANN, "update", "project", {"uid:1000": "operator"}, SEEN),
    (ANN, "update", "project", {"uid:1000": "owner"}, ALLOWED),
    (ANN, "create", "project", {}, ALLOWED),
    (ANN, "get", "node", {}, ALLOWED),
    (ANN, "update", "node", {"uid:1000": "owner"}, SEEN),
]


@pytest.mark.parametrize(("who", "verb", "kind", "members", "answer"), CASES)
def test_access(who: Principal, verb: Verb, kind: str, members: dict[str, Role], answer: Answer) -> None:
    assert may(who, verb, kind, members) == answer
