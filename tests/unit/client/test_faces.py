"""The SDK against a real API with fake guests: the blocking face whole, the asynchronous one where it could differ."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from roost.client.aio.host import AsyncHost
from roost.client.progress import Sign
from roost.errors import CommandFailed, Conflict, Invalid, NotFound, NotStarted, RoostError, Unavailable
from tests.unit.client.served import Echo, Served

NEVER = Sign("never", lambda machine: False)


@pytest.fixture
def host(daemon: Served) -> Iterator[roost.Host]:
    with roost.connect(f"unix:{daemon.socket}") as found:
        yield found


@pytest.fixture
def web(host: roost.Host) -> Iterator[roost.MachineHandle]:
    machine = host.machines.launch("tiny")
    yield machine
    machine.delete()


def test_launch_returns_a_machine_that_runs_commands(host: roost.Host) -> None:
    web = host.machines.launch("tiny", "first", memory="256MiB", cpus=2)
    assert (web.name, web.status.phase, web.spec.memory, web.timing.path) == ("first", "running", 256 << 20, "cold")
    assert web.run("echo", "hello").check().stdout == "hello\n"


def test_a_machine_without_a_name_gets_a_pleasant_one(web: roost.MachineHandle) -> None:
    assert "-" in web.name


def test_a_name_that_is_taken_is_a_conflict(host: roost.Host, web: roost.MachineHandle) -> None:
    with pytest.raises(Conflict):
        host.machines.launch("tiny", web.name)


def test_every_wrong_field_is_named(host: roost.Host) -> None:
    with pytest.raises(Invalid) as caught:
        host.machines.launch("tiny", "wrong", cpus=0, memory="much", firmware="coreboot")
    assert {problem.path for problem in caught.value.problems} == {"spec.cpus", "spec.memory", "spec.firmware"}


def test_what_kept_a_machine_from_starting_is_raised(daemon: Served, host: roost.Host) -> None:
    daemon.hypervisor.refuse = Unavailable(
        "QEMU is not installed", "no such program", "apt-get install qemu-system-x86"
    )
    with pytest.raises(RoostError, match="did not start") as caught:
        host.machines.launch("tiny", "unlucky")
    daemon.hypervisor.refuse = None
    assert caught.value.fix == "apt-get install qemu-system-x86"


def test_a_code_that_is_not_0_is_raised_by_check(web: roost.MachineHandle) -> None:
    completed = web.run("exit", "3")
    assert completed.code == 3
    with pytest.raises(CommandFailed, match="exit 3"):
        completed.check()


def test_input_goes_in_while_output_comes_out(web: roost.MachineHandle) -> None:
    assert len(web.run("cat", input=b"x" * 1_000_000).stdout_bytes) == 1_000_000 + len("cat\n")


def test_binary_data_stays_as_it_is(web: roost.MachineHandle) -> None:
    every = bytes(range(256))
    assert web.run("cat", input=every).stdout_bytes == b"cat\n" + every


def test_a_stream_gives_pieces_and_then_the_code(web: roost.MachineHandle) -> None:
    execution = web.stream("loop", input=[b"a", b"b"])
    assert b"".join(output.data for output in execution) == b"loop\nab"
    assert execution.code == 0


def test_leaving_the_loop_kills_the_command(daemon: Served, web: roost.MachineHandle) -> None:
    with web.execute("forever", stdin=True) as execution:
        next(execution)
        session = daemon.guest(web.name).answering
    assert daemon.call(_closed(session)) is True


async def _closed(agent: object) -> bool:
    """Whether the agent's only session was closed: nothing it would wait for can still be waiting."""
    await asyncio.sleep(0.02)
    gc.collect()
    found = [
        each for each in gc.get_objects() if type(each).__name__ == "FakeSession" and each._command.argv[0] == "forever"
    ]
    return all(session.closed for session in found)


def test_a_command_that_can_not_start_did_nothing(web: roost.MachineHandle) -> None:
    with pytest.raises(NotStarted, match="did not start"):
        web.run("missing")


def test_no_command_at_all_is_a_mistake(web: roost.MachineHandle) -> None:
    with pytest.raises(Invalid):
        web.run()


def test_too_much_output_for_run_is_told(web: roost.MachineHandle) -> None:
    with (
        web.stream("cat", input=b"x" * 5000) as execution,
        pytest.raises(RoostError, match="printed more than 100 bytes"),
    ):
        execution.completed(limit=100)


def test_a_machine_that_does_not_run_can_not_run_commands(web: roost.MachineHandle) -> None:
    web.stop()
    with pytest.raises(Conflict):
        web.run("echo")


def test_power_verbs_say_whether_they_changed_anything(web: roost.MachineHandle) -> None:
    assert web.start() is False
    assert web.stop() is True
    assert web.stop() is False
    assert web.start() is True
    assert web.pause() is True
    assert web.resume() is True
    web.restart()
    assert web.status.phase == "running"


def test_a_stopped_machine_can_not_be_resumed(web: roost.MachineHandle) -> None:
    web.stop()
    with pytest.raises(Conflict):
        web.resume()


def test_a_machine_goes_on_under_another_name(web: roost.MachineHandle) -> None:
    web.rename("another")
    assert web.run("echo", "hi").stdout == "hi\n"


def test_a_deleted_machine_is_gone(host: roost.Host) -> None:
    web = host.machines.launch("tiny")
    web.delete()
    with pytest.raises(NotFound):
        web.refresh()
    assert web.name not in [machine.name for machine in host.machines.list()]


def test_several_pages_are_one_list(
    host: roost.Host, web: roost.MachineHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.client.blocking.objects.PAGE", 1)
    other = host.machines.launch("tiny")
    assert {web.name, other.name} <= {machine.name for machine in host.machines.list()}


def test_a_directory_goes_in_and_comes_out(daemon: Served, web: roost.MachineHandle, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index").write_text("hello")
    web.copy_in(tmp_path / "site", "/srv/")
    archives = daemon.guest(web.name).answering.archives
    archives["/srv/site"] = archives["/srv/"]
    assert web.copy_out("/srv/site", tmp_path / "back") == []
    assert (tmp_path / "back" / "index").read_text() == "hello"


def test_logs_are_what_the_console_printed(web: roost.MachineHandle) -> None:
    assert b"".join(web.logs()) == b"fake guest\n"


def test_the_console_takes_what_is_typed_and_shows_what_is_printed(daemon: Served, web: roost.MachineHandle) -> None:
    daemon.guest(web.name).console = Echo()
    with web.console() as console:
        assert next(console) == b"login: "
        console.write(b"root\n")
        assert next(console) == b"root\n"


def test_an_export_with_another_checksum_is_not_kept(daemon: Served, host: roost.Host, tmp_path: Path) -> None:
    daemon.uploads.content = {"tiny": b"something else"}
    with pytest.raises(roost.OutcomeUnknown):
        host.images.download("tiny", tmp_path / "out.qcow2", report=lambda name, now: None)
    daemon.uploads.content = {}
    assert list(tmp_path.iterdir()) == []


def test_a_disk_file_is_uploaded_once(daemon: Served, host: roost.Host, tmp_path: Path) -> None:
    (tmp_path / "my disk.raw").write_bytes(b"disk" * 1000)
    first = host.images.image_of(str(tmp_path / "my disk.raw"), None, lambda *_: None)
    assert first.startswith("my-disk-")
    assert daemon.uploads.content.pop(first) == b"disk" * 1000
    assert host.images.image_of(str(tmp_path / "my disk.raw"), None, lambda *_: None) == first
    assert daemon.uploads.content == {}


def test_a_url_without_a_checksum_is_refused(host: roost.Host) -> None:
    with pytest.raises(Invalid, match="not used"):
        host.machines.launch("https://example.org/disk.qcow2")


def test_documents_are_applied_and_then_differ_no_more(host: roost.Host) -> None:
    document = {
        "kind": "machine",
        "name": "declared",
        "spec": {"image": "tiny", "memory": "256MiB", "power": "stopped"},
    }
    assert [outcome.action for outcome in host.diff([document])] == ["create"]
    assert [outcome.action for outcome in host.apply([document])] == ["create"]
    assert [outcome.action for outcome in host.apply([document])] == ["same"]
    (outcome,) = host.diff([{**document, "spec": {**document["spec"], "cpus": 2}}])
    assert outcome.lines == (("spec.cpus", 1, 2),)


def test_one_wrong_document_keeps_all_from_being_applied(host: roost.Host) -> None:
    good = {"kind": "machine", "name": "innocent", "spec": {"image": "tiny"}}
    with pytest.raises(Invalid):
        host.apply([good, {"kind": "machine", "name": "guilty", "spec": {}}])
    with pytest.raises(NotFound):
        host.machines.get("innocent")


def test_a_watch_tells_what_is_there_and_then_what_happens(host: roost.Host) -> None:
    seen = []
    for change in host.machines.watch():
        seen.append(change)
        if change.synced:
            host.machines.create("watched", {"image": "tiny", "power": "stopped"})
        if change.value is not None and change.value.name == "watched":
            break
    assert any(change.synced for change in seen)


async def test_the_asynchronous_face_says_the_same(daemon: Served) -> None:
    async with roost.connect_async(f"unix:{daemon.socket}") as host:
        web = await host.machines.launch("tiny", "aio")
        assert (await web.run("echo", "hello")).check().stdout == "hello\n"
        assert [output.data async for output in web.stream("loop", input=[b"a"])] == [b"loop\n", b"a"]
        await web.delete()


async def test_many_commands_run_at_once_in_one_event_loop(daemon: Served) -> None:
    async with roost.connect_async(f"unix:{daemon.socket}") as host:
        web = await host.machines.launch("tiny", "busy")
        found = await asyncio.gather(*[web.run("cat", input=str(number)) for number in range(20)])
        assert [each.stdout for each in found] == [f"cat\n{number}" for number in range(20)]
        await web.delete()


async def test_a_cancelled_wait_leaves_the_machine_to_go_on(daemon: Served) -> None:
    async with roost.connect_async(f"unix:{daemon.socket}") as host:
        with pytest.raises(TimeoutError):
            await _launch_with_no_time(host)
        assert (await host.machines.get("patient")).name == "patient"
        await host.machines.delete("patient")


async def _launch_with_no_time(host: AsyncHost) -> None:
    machine = await host.machines.launch("tiny", "patient", wait=False)
    async with asyncio.timeout(0.02):
        await machine.wait_for(NEVER)


def test_clones_of_a_running_machine_answer(host: roost.Host, web: roost.MachineHandle) -> None:
    kids = [kid for kid in web.clone("kid", count=3) if isinstance(kid, roost.MachineHandle)]
    assert [kid.run("echo", kid.name).check().stdout for kid in kids] == ["kid-1\n", "kid-2\n", "kid-3\n"]
    assert {(kid.timing.path, kid.status.origin) for kid in kids} == {("clone", f"machine {web.name}")}
    assert web.run("echo", "still here").check().stdout == "still here\n"
    host.machines.delete("kid-1")


def test_clones_of_a_stopped_machine_are_stopped(web: roost.MachineHandle) -> None:
    web.stop()
    (off,), (on,) = web.clone("off"), web.clone("on", start=True)
    assert isinstance(off, roost.MachineHandle)
    assert isinstance(on, roost.MachineHandle)
    assert (off.status.phase, on.run("echo", "on").check().stdout) == ("stopped", "on\n")
