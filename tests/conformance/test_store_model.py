"""The durable store against a simple model, through random operations, re-openings and crashes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roost.errors import Conflict, NotFound
from roost.store.base import Entry, Write
from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock
from roost.testing.stores import take

KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "ä"])
VALUES = st.one_of(st.none(), st.binary(max_size=20), st.just(bytes(6000)))
WRITES = st.lists(
    st.tuples(KEYS, VALUES, st.sampled_from(["any", "right", "wrong"]), st.booleans()), min_size=1, max_size=4
)


class StoreMachine(RuleBasedStateMachine):
    """The model: values by key, all changes ever, leases. Everything else follows from them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="roost-model-"))
        self.path = self.directory / "roost.db"
        self.values: dict[str, Entry] = {}
        self.leased: dict[str, int] = {}
        self.leases: list[int] = []
        self.history: list[Entry] = []
        self.revision = self.compacted = 0
        self.store = self.run(SqliteStore.open(self.path, clock=VirtualClock()))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def apply(self, writes: list[Write]) -> None:
        changes = [write for write in writes if write.value is not None or write.key in self.values]
        self.revision += bool(changes)
        for write in changes:
            entry = Entry(write.key, write.value, self.revision)
            self.history.append(entry)
            self.values.pop(write.key, None)
            self.leased.pop(write.key, None)
            if write.value is not None:
                self.values[write.key] = entry
                if write.lease is not None:
                    self.leased[write.key] = write.lease

    @rule(drawn=WRITES)
    def commit(self, drawn: list[tuple[str, bytes | None, str, bool]]) -> None:
        writes, fits = [], True
        for key, value, expect, with_lease in {key: row for row in drawn for key in row[:1]}.values():
            found = self.values[key].revision if key in self.values else 0
            number = {"any": None, "right": found, "wrong": found + 1}[expect]
            fits = fits and expect != "wrong"
            writes.append(Write(key, value, number, self.leases[-1] if with_lease and self.leases else None))
        try:
            revision = self.run(self.store.commit(writes))
        except Conflict:
            assert not fits
        else:
            assert fits
            self.apply(writes)
            assert revision == self.revision

    @rule()
    def grant(self) -> None:
        self.leases.append(self.run(self.store.grant(60)))
        self.revision += 1
        assert self.leases[-1] == self.revision

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.leases, 999_999]))
        if lease not in self.leases:
            try:
                self.run(self.store.revoke(lease))
            except NotFound:
                return
            raise AssertionError("a lease that never was is revoked")
        self.run(self.store.revoke(lease))
        self.leases.remove(lease)
        before = self.revision
        self.apply([Write(key, None) for key in sorted(key for key, held in self.leased.items() if held == lease)])
        self.revision = before + 1

    @rule(share=st.floats(0, 1))
    def compact(self, share: float) -> None:
        revision = round(self.revision * share)
        self.run(self.store.compact(revision))
        self.compacted = max(self.compacted, revision)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(SqliteStore.open(self.path, clock=VirtualClock()))

    @rule()
    def crash(self) -> None:
        copy = Path(tempfile.mkdtemp(dir=self.directory))
        for file in self.directory.glob("roost.db*"):
            shutil.copy(file, copy)
        self.run(self.store.close())
        for file in self.directory.glob("roost.db*"):
            file.unlink()
        for file in copy.iterdir():
            file.rename(self.directory / file.name)
        self.store = self.run(SqliteStore.open(self.path, clock=VirtualClock()))

    @invariant()
    def lists_agree(self) -> None:
        assert self.run(self.store.list("")) == ([self.values[key] for key in sorted(self.values)], self.revision)

    @invariant()
    def watches_agree(self) -> None:
        expected = [entry for entry in self.history if entry.revision > self.compacted and entry.key.startswith("a")]
        assert self.run(take(self.store.watch("a", since=self.compacted), len(expected))) == expected

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        shutil.rmtree(self.directory)


StoreMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreModel = StoreMachine.TestCase
