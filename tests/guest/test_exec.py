"""Commands through the real agent, run as an ordinary process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import signal
import time
from pathlib import Path

import pytest

from roost.errors import Invalid, NotStarted, OutcomeUnknown
from roost.hypervisor import agentwire
from roost.hypervisor.agent import AgentSession, RoostAgent
from roost.hypervisor.base import Chunk, Command
from tests.guest.native import client, connected, run, start


async def read_until(session: AgentSession, text: bytes) -> bytes:
    """Output up to and with `text`."""
    seen = b""
    async for chunk in session.output():
        seen += chunk.data
        if text in seen:
            break
    return seen


async def exit_of(session: AgentSession) -> int:
    """The exit code; output is thrown away."""
    return [chunk async for chunk in session.output()][-1].code


async def test_output_and_error_are_separate_and_the_exit_code_is_the_commands(agent: RoostAgent) -> None:
    assert await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


async def test_every_exit_code_arrives(agent: RoostAgent) -> None:
    codes = [(await run(agent, "sh", "-c", f"exit {code}")).code for code in range(256)]
    assert codes == list(range(256))


async def test_a_killed_command_ends_with_128_and_the_signal(agent: RoostAgent) -> None:
    assert (await run(agent, "sh", "-c", "kill -SEGV $$")).code == 128 + signal.SIGSEGV


async def test_output_may_be_any_bytes(agent: RoostAgent) -> None:
    data = bytes(range(256)) * 300
    assert (await run(agent, "cat", stdin=data)).stdout == data


async def test_ten_mebibytes_of_input_arrive_whole(agent: RoostAgent) -> None:
    data = os.urandom(10 << 20)
    done = await run(agent, "md5sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()


async def test_fifty_mebibytes_of_output_arrive_whole(agent: RoostAgent) -> None:
    done = await run(agent, "dd", "if=/dev/zero", "bs=1M", "count=50", "status=none")
    assert (done.code, len(done.stdout)) == (0, 50 << 20)


async def test_input_for_a_command_that_does_not_read_is_dropped(agent: RoostAgent) -> None:
    assert (await run(agent, "sh", "-c", "exec <&-; sleep 0.2; exit 3", stdin=bytes(4 << 20))).code == 3


async def test_without_input_the_command_reads_its_end(agent: RoostAgent) -> None:
    assert await run(agent, "cat") == (0, b"", b"")


async def test_environment_is_what_was_asked_and_the_usual_variables(agent: RoostAgent) -> None:
    done = await run(agent, "env", env={"GREETING": "hällo wörld", "HOME": "/nowhere"})
    lines = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert {"GREETING", "HOME", "PATH", "USER", "LOGNAME", "SHELL"} == set(lines)
    assert (lines["GREETING"], lines["HOME"]) == ("hällo wörld", "/nowhere")


async def test_the_path_of_the_request_finds_the_program(agent: RoostAgent, tmp_path: os.PathLike[str]) -> None:
    program = os.path.join(tmp_path, "only-here")  # noqa: PTH118
    with open(program, "w") as file:
        file.write("#!/bin/sh\necho found\n")
    os.chmod(program, 0o755)  # noqa: PTH101
    assert (await run(agent, "only-here", env={"PATH": f"{tmp_path}:/bin:/usr/bin"})).stdout == b"found\n"


async def test_directory_is_where_the_command_starts(agent: RoostAgent) -> None:
    assert (await run(agent, "pwd", cwd="/usr")).stdout == b"/usr\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_user_is_who_the_command_runs_as(agent: RoostAgent) -> None:
    done = await run(agent, "sh", "-c", "id -un; id -Gn; echo $HOME $USER", user="nobody")
    assert done.stdout == b"nobody\nnogroup\n/nonexistent nobody\n"


async def test_an_unknown_user_starts_nothing(agent: RoostAgent) -> None:
    with pytest.raises(NotStarted):
        await run(agent, "true", user="no-such-user")


async def test_a_missing_program_is_not_started(agent: RoostAgent) -> None:
    with pytest.raises(NotStarted, match="No such file") as caught:
        await run(agent, "/no/such/program")
    assert "/no/such/program" in caught.value.what


async def test_a_missing_directory_is_not_started(agent: RoostAgent) -> None:
    with pytest.raises(NotStarted, match="No such file"):
        await run(agent, "true", cwd="/no/such/directory")


async def test_a_command_that_is_too_long_is_refused_here(agent: RoostAgent) -> None:
    with pytest.raises(Invalid):
        await run(agent, "echo", "x" * agentwire.MAX_PAYLOAD)
    assert (await run(agent, "true")).code == 0


async def test_a_command_may_be_a_hundred_kilobytes_long(agent: RoostAgent) -> None:
    assert len((await run(agent, "echo", "x" * 100_000)).stdout) == 100_001


async def test_thirty_two_commands_run_at_once(agent: RoostAgent) -> None:
    begin = time.monotonic()
    done = await asyncio.gather(*[run(agent, "sh", "-c", f"sleep 1; echo {i}; exit {i}") for i in range(32)])
    assert [(d.code, d.stdout) for d in done] == [(i, b"%d\n" % i) for i in range(32)]
    assert time.monotonic() - begin < 10


async def test_commands_that_end_at_the_same_moment_are_all_reported(agent: RoostAgent) -> None:
    sessions = [await agent.execute(Command(["cat"], stdin=True)) for _ in range(60)]
    for session in sessions:
        await session.end_input()
    async with asyncio.timeout(10):
        assert [await exit_of(session) for session in sessions] == [0] * 60


async def test_two_hundred_and_fifty_six_commands_fit_and_one_more_is_refused(agent: RoostAgent) -> None:
    sessions = [await agent.execute(Command(["sleep", "100"])) for _ in range(256)]
    with pytest.raises(NotStarted):
        await agent.execute(Command(["true"]))
    for session in sessions:
        await session.close()
    await agent.ping(10)
    assert (await run(agent, "true")).code == 0


async def test_a_reader_who_stops_does_not_hold_up_others(agent: RoostAgent) -> None:
    stalled = [await agent.execute(Command(["yes"])) for _ in range(4)]
    await asyncio.sleep(0.3)
    assert await run(agent, "echo", "hello", timeout=5) == (0, b"hello\n", b"")
    await agent.ping(5)
    for session in stalled:
        await session.close()


async def test_a_command_that_does_not_read_does_not_hold_up_others(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["sleep", "100"], stdin=True))
    writer = asyncio.ensure_future(session.write(bytes(1 << 20)))
    await asyncio.sleep(0.2)
    assert not writer.done()
    assert (await run(agent, "cat", stdin=b"x" * 100_000, timeout=5)).stdout == b"x" * 100_000
    await session.close()
    await asyncio.wait_for(writer, 5)


async def test_a_daemon_that_holds_the_output_does_not_delay_the_exit(agent: RoostAgent) -> None:
    begin = time.monotonic()
    assert await run(agent, "sh", "-c", "sleep 30 & echo started") == (0, b"started\n", b"")
    assert time.monotonic() - begin < 5


async def test_a_daemon_that_goes_on_printing_does_not_delay_the_exit(agent: RoostAgent) -> None:
    begin = time.monotonic()
    done = await run(agent, "sh", "-c", "(timeout 20 yes &) ; exit 5")
    assert done.code == 5
    assert time.monotonic() - begin < 10


async def test_output_left_in_the_pipe_at_the_exit_arrives_whole(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["dd", "if=/dev/zero", "bs=400k", "count=1", "status=none"]))
    await asyncio.sleep(0.5)
    assert sum([len(chunk.data) async for chunk in session.output()]) == 400 << 10


async def test_a_signal_reaches_the_whole_group(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["sh", "-c", "trap 'echo got; exit 9' TERM; echo ready; sleep 100 & wait"]))
    await read_until(session, b"ready")
    await session.signal(signal.SIGTERM)
    assert [chunk async for chunk in session.output()] == [Chunk("stdout", b"got\n"), Chunk("exit", code=9)]


async def test_closing_a_session_kills_the_command_and_its_children(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["sh", "-c", "sleep 98765 & sleep 98765"]))
    await session.close()
    await agent.ping(5)
    left = await run(agent, "sh", "-c", "sleep 0.3; ps ax -o ppid=,args= | grep '[s]leep 98765' || echo none")
    assert left.stdout == b"none\n"


async def test_a_terminal_has_its_size_and_a_later_one(agent: RoostAgent) -> None:
    script = "stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done"
    session = await agent.execute(Command(["sh", "-c", script], terminal=(40, 100)))
    assert (await read_until(session, b"ready")).split() == [b"40", b"100", b"ready"]
    await session.resize(50, 120)
    chunks = [chunk async for chunk in session.output()]
    assert b"".join(chunk.data for chunk in chunks).split() == [b"50", b"120"]
    assert chunks[-1].code == 4


async def test_typing_control_c_on_a_terminal_interrupts(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["sh", "-c", "echo ready; sleep 100"], terminal=(24, 80)))
    await read_until(session, b"ready")
    await session.write(b"\x03")
    assert await exit_of(session) == 128 + signal.SIGINT


async def test_the_end_of_input_ends_a_shell_on_a_terminal(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["sh", "-i"], terminal=(24, 80), env={"PS1": "> "}))
    await session.write(b"exit_code=6\n")
    await read_until(session, b"exit_code=6")
    await session.write(b"(exit 6)\n")
    await session.end_input()
    assert await exit_of(session) == 6


async def test_no_arguments_is_the_login_shell(agent: RoostAgent, tmp_path: Path) -> None:
    empty = {"HOME": str(tmp_path)}  # whoever runs the tests may have a slow profile
    assert (await run(agent, stdin=b"echo $0\n", env=empty)).stdout.startswith(b"-")


async def test_a_half_frame_of_a_dead_host_does_not_reach_the_command() -> None:
    native = start()
    try:
        agent = await client(native.port)
        session = await agent.execute(Command(["cat"], stdin=True))
        frame = agentwire.encode(session._number, agentwire.Type.INPUT, b"y" * 30_000)
        agent.send(frame[:17_000])
        await agent.drain()
        port = native.port.dup()
        agent._receiver.cancel()
        agent._writer.transport.abort()
        successor = await client(port)
        assert (await run(successor, "echo", "alive")).stdout == b"alive\n"
        await successor.close()
        assert native.process.wait(10) == 0
    finally:
        native.process.kill()
        native.process.wait()


async def test_a_new_host_ends_what_the_old_one_had_begun() -> None:
    async with connected() as agent:
        session = await agent.execute(Command(["sleep", "100"]))
        agent._nonce = os.urandom(16)
        agent.send(agentwire.encode(0, agentwire.Type.RESET, agent._nonce))
        left = await run(agent, "sh", "-c", "sleep 0.2; ps -o args= --ppid $PPID | grep '[s]leep 100' || echo none")
        assert left.stdout == b"none\n"
        await session.close()


async def test_a_reset_that_is_repeated_ends_nothing(agent: RoostAgent) -> None:
    session = await agent.execute(Command(["cat"], stdin=True))
    agent.send(agentwire.encode(0, agentwire.Type.RESET, agent._nonce))
    await session.write(b"still here")
    await session.end_input()
    assert b"".join([chunk.data async for chunk in session.output()]) == b"still here"


async def test_a_lost_connection_leaves_the_outcome_unknown() -> None:
    native = start()
    agent = await client(native.port)
    session = await agent.execute(Command(["sleep", "100"]))
    native.process.kill()
    native.process.wait()
    with pytest.raises(OutcomeUnknown):
        await exit_of(session)
    with pytest.raises(NotStarted):
        await agent.execute(Command(["true"]))
    await agent.close()


async def test_the_agent_says_what_it_is(agent: RoostAgent) -> None:
    assert set(agent.info) == {"agent", "can", "kernel", "arch", "os"}
    assert agent.info["kernel"] == os.uname().release


async def test_commands_do_not_outlive_the_agent() -> None:
    native = start()
    agent = await client(native.port)
    session = await agent.execute(Command(["sh", "-c", "echo $$; exec sleep 100"]))
    pid = int(await read_until(session, b"\n"))
    command = os.pidfd_open(pid)
    native.process.kill()
    native.process.wait()
    await agent.close()
    ended, _, _ = await asyncio.to_thread(select.select, [command], [], [], 5)
    os.close(command)
    assert ended
