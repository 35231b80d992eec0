"""A store over a journal on a disk: commits that come together are kept together, by one thread; reads come from memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from roost import log
from roost.errors import OutcomeUnknown, RoostError, Unavailable
from roost.store.serving import Decide, LeaseClock, ServingStore
from roost.store.state import Commit, Compaction, Draft, State

GROUP = 512
"""Commits that share one transaction at most."""

T = TypeVar("T")


class Journal(Protocol):
    """Where commits are kept; used by one thread alone.

    Its verbs raise Unavailable when nothing happened, and OutcomeUnknown when nothing it says can be trusted any more.
    """

    def append(self, commits: Sequence[Commit]) -> None:
        """Keep commits durably, all or none."""
        ...

    def forget(self, compaction: Compaction) -> None:
        """Delete what nobody can ask for any more."""
        ...

    def tidy(self) -> None:
        """Do what is due but need not hold up a commit."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class _Request(NamedTuple):
    decide: Decide
    answer: asyncio.Future[int]


class DurableStore(ServingStore):
    """A `Store` whose commits are acknowledged when the journal has them.

    A commit that a full disk or a failed write keeps out raises Unavailable, changes nothing, and the next one may succeed. After a
    failed fsync those under way raise OutcomeUnknown, and the store takes no more writes until it is opened again.
    """

    def __init__(self, state: State, clock: LeaseClock, journal: Journal, thread: ThreadPoolExecutor) -> None:
        """`thread` is the one that opened `journal`; both are closed with the store."""
        super().__init__(state, clock)
        self._journal = journal
        self._thread = thread
        self._queue: deque[_Request] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._failure = ""
        self._refused = False

    async def compact(self, revision: int) -> None:
        """Forget history up to `revision`; the latest value of every key stays. Raises Unavailable, OutcomeUnknown."""
        self._check_open()
        async with self._writing:
            self._check_healthy()
            try:
                await self._forget(revision)
            except OutcomeUnknown as error:
                raise self._fail(error) from error

    async def close(self) -> None:
        """Finish what was accepted, then let go of the journal."""
        if self._closed:
            return
        self._serve_no_more()
        while self._writer is not None:
            await asyncio.wait((self._writer,))
        async with self._writing:
            await self._in_thread(self._journal.close)
        self._thread.shutdown(wait=False)

    async def _submit(self, decide: Decide) -> int:
        self._check_open()
        self._check_healthy()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(decide, answer))
        if self._writer is None:
            self._writer = log.spawn_task(self._write_queue(), "store writer")
        return await answer

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                async with self._writing:
                    # What piles up while a group is being written is the next group.
                    await self._write([self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))])
                    await self._tidy()
        finally:
            self._writer = None
            while self._queue:
                self._queue.popleft().answer.cancel()

    async def _write(self, requests: Sequence[_Request]) -> None:
        """Decide, keep and publish a group; when it cannot be kept as a whole, each of it alone, so that one cannot fail another."""
        draft = Draft(self._state)
        results = [(r.answer, _decided(r.decide, draft)) for r in requests if not r.answer.done()]
        try:
            failure = await self._keep(draft.commits) if draft.commits else None
            if isinstance(failure, Unavailable) and len(results) > 1:
                for request in requests:
                    await self._write([request])
                return
            if failure is None:
                self._publish(draft.commits)
            for answer, result in results:
                _resolve(answer, failure or result)
        finally:
            # Whatever breaks here (the event loop is closing): nobody waits for ever.
            for answer, _ in results:
                answer.cancel()

    async def _keep(self, commits: Sequence[Commit]) -> RoostError | None:
        """Hand commits to the journal; why they were not kept, or None."""
        try:
            self._check_healthy()
            await self._in_thread(self._journal.append, commits)
        except Unavailable as error:
            self._say_refused(error)
            return error
        except Exception as error:
            return self._fail(error)
        self._say_refused(None)
        return None

    async def _tidy(self) -> None:
        """Compact and clean up when due. Failing here undoes nothing that was acknowledged, and is tried after the next group."""
        if self._failure:
            return
        try:
            due = self._state.compaction_due()
            if due is not None:
                await self._forget(due)
            await self._in_thread(self._journal.tidy)
        except Unavailable as error:
            self._say_refused(error)
        except Exception as error:
            self._fail(error)

    async def _forget(self, revision: int) -> None:
        compaction = self._state.compaction(revision)
        if compaction.revision > self._state.compacted:
            await self._in_thread(self._journal.forget, compaction)
            self._state.compact(compaction)

    def _check_healthy(self) -> None:
        if self._failure:
            raise Unavailable(
                "the store takes no writes until the daemon is restarted",
                why=self._failure,
                fix="look for disk errors (dmesg), then restart the daemon; machines keep running meanwhile",
            )

    def _fail(self, error: Exception) -> OutcomeUnknown:
        """Take no more writes. Gives what the callers get whose commit was under way."""
        if not isinstance(error, OutcomeUnknown):
            fix = "restart the daemon, then look whether it happened"
            error = OutcomeUnknown("the change may or may not have been kept", why=repr(error), fix=fix)
        self._failure = error.why
        log.get(__name__).error("the store failed and takes no more writes", why=error.why, exc_info=error)
        return error

    def _say_refused(self, error: Unavailable | None) -> None:
        refused = error is not None and not self._failure
        if error is not None and refused and not self._refused:
            log.get(__name__).error("the store cannot write", why=error.why)
        elif self._refused and not refused:
            log.get(__name__).info("the store writes again")
        self._refused = refused

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _decided(decide: Decide, draft: Draft) -> int | RoostError:
    try:
        return decide(draft)
    except RoostError as error:
        return error


def _resolve(answer: asyncio.Future[int], result: int | RoostError) -> None:
    if answer.done():
        return
    if isinstance(result, RoostError):
        answer.set_exception(result)
    else:
        answer.set_result(result)
