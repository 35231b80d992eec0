"""Cases of the conformance suite of runtimes: files, network, limits, and what a program sees of its host."""

from __future__ import annotations

import socket
from pathlib import Path

from roost.testing.lab import PATIENCE, Case, Lab, Ran, Running, fine, refused

CASES: list[Case] = []
"""In the order of this file."""


def _case(case: Case) -> Case:
    CASES.append(case)
    return case


# Files


def _secret(lab: Lab) -> Path:
    """A file of the caller that nobody granted, beside the granted directory."""
    secret = lab.place / "secret.txt"
    secret.write_text("SECRET\n")
    (lab.place / "data").mkdir()
    (lab.place / "data/one.txt").write_text("one\n")
    return secret


@_case
def its_directory_is_the_caller_s(lab: Lab) -> None:
    assert fine(lab.run("cwd")).lines[0].replace("\\", "/").removeprefix("Z:") == str(lab.place)


@_case
def a_granted_file_is_read(lab: Lab) -> None:
    _secret(lab)
    assert fine(lab.run("read", "data/one.txt", flags=("--fs", "data/one.txt:ro"))).lines == ["one"]


@_case
def a_granted_file_is_all_of_its_directory(lab: Lab) -> None:
    _secret(lab)
    (lab.place / "data/two.txt").write_text("SECRET\n")
    refused(lab.run("read", "data/two.txt", flags=("--fs", "data/one.txt:ro")))


@_case
def a_granted_file_is_written(lab: Lab) -> None:
    _secret(lab)
    fine(lab.run("write", "data/one.txt", "new", flags=("--fs", "data/one.txt:rw")))
    assert (lab.place / "data/one.txt").read_text() == "new"


@_case
def a_read_only_file_is_not_written(lab: Lab) -> None:
    _secret(lab)
    refused(lab.run("write", "data/one.txt", "new", flags=("--fs", "data/one.txt:ro")))
    assert (lab.place / "data/one.txt").read_text() == "one\n"


@_case
def a_granted_directory_is_listed(lab: Lab) -> None:
    _secret(lab)
    (lab.place / "data/ä '\" b").write_text("odd")
    assert fine(lab.run("list", "data", flags=("--fs", "data:ro"))).lines == ["one.txt", "ä '\" b"]


@_case
def names_may_be_odd(lab: Lab) -> None:
    odd = lab.place / "dä ta '$x"
    odd.mkdir()
    (odd / "ü \U0001f600.txt").write_text("odd\n")
    assert fine(lab.run("read", f"{odd.name}/ü \U0001f600.txt", flags=("--fs", odd.name))).lines == ["odd"]


@_case
def a_directory_appears_where_it_is_wanted(lab: Lab) -> None:
    _secret(lab)
    assert fine(lab.run("read", "/in/put/one.txt", flags=("--fs", "./data:/in/put:ro"))).lines == ["one"]


@_case
def a_read_only_directory_is_not_changed(lab: Lab) -> None:
    _secret(lab)
    flags = ("--fs", "data:ro")
    for words in (("write", "data/x", "y"), ("mkdir", "data/d"), ("rename", "data/one.txt", "data/2")):
        refused(lab.run(*words, flags=flags))
    lab.run("remove", "data/one.txt", flags=flags)  # Windows tells only later: the program may think that it has
    assert [path.name for path in (lab.place / "data").iterdir()] == ["one.txt"]


@_case
def a_writable_directory_is_changed(lab: Lab) -> None:
    _secret(lab)
    flags = ("--fs", "data:/out")
    for words in (
        ("write", "/out/a", "text"),
        ("mkdir", "/out/d"),
        ("rename", "/out/a", "/out/d/b"),
        ("remove", "/out/one.txt"),
    ):
        fine(lab.run(*words, flags=flags))
    made = lab.place / "data/d/b"
    assert made.read_text() == "text"
    assert sorted(path.name for path in (lab.place / "data").iterdir()) == ["d"]
    assert made.stat().st_uid == lab.place.stat().st_uid, "what it makes belongs to the caller"


@_case
def what_is_appended_is_at_the_end(lab: Lab) -> None:
    _secret(lab)
    fine(lab.run("append", "data/one.txt", "two", flags=("--fs", "data")))
    assert (lab.place / "data/one.txt").read_text() == "one\ntwo"
    assert fine(lab.run("size", "data/one.txt", flags=("--fs", "data:ro"))).lines == ["7"]


@_case
def what_is_not_granted_is_not_there(lab: Lab) -> None:
    secret = _secret(lab)
    for path in ("secret.txt", str(secret), "/etc/shadow", "/etc/gshadow"):
        refused(lab.run("read", path, flags=("--fs", "data:ro")))
    refused(lab.run("write", "new.txt", "x", flags=("--fs", "data:ro")))


@_case
def dots_lead_nowhere(lab: Lab) -> None:
    _secret(lab)
    for path in ("data/../secret.txt", "data/../../" + f"{lab.place.name}/secret.txt", "/in/../secret.txt"):
        refused(lab.run("read", path, flags=("--fs", "data", "--fs", "data:/in")))


@_case
def links_lead_nowhere(lab: Lab) -> None:
    secret = _secret(lab)
    (lab.place / "data/absolute").symlink_to(secret)
    (lab.place / "data/relative").symlink_to("../secret.txt")
    for path in ("data/absolute", "data/relative"):
        refused(lab.run("read", path, flags=("--fs", "data")))
        refused(lab.run("write", path, "x", flags=("--fs", "data")))
    assert secret.read_text() == "SECRET\n"


@_case
def a_refusal_names_the_flag(lab: Lab) -> None:
    _secret(lab)
    ran = refused(lab.run("read", "secret.txt"))
    assert any("--fs" in refusal and "secret.txt" in refusal for refusal in ran.status["refusals"]), ran.status
    assert b"--fs" in ran.err


@_case
def its_own_file_is_not_changed(lab: Lab) -> None:
    before = lab.program.read_bytes()
    refused(lab.run("write", f"/app/{lab.program.name}", "x"))
    assert lab.program.read_bytes() == before


@_case
def temporary_files_are_its_own(lab: Lab) -> None:
    assert "kept" in fine(lab.run("tmp")).lines


# Network


class _Server:
    """Says "hi" to each caller."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port = int(self._listener.getsockname()[1])

    def answer(self, running: Running) -> Ran:
        """Answer one caller, then its end."""
        with self._listener:
            connection, _ = self._listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"hi\n")
        return running.wait()

    def waiting(self) -> bool:
        """Whether somebody came; closes."""
        with self._listener:
            self._listener.settimeout(0)
            try:
                self._listener.accept()[0].close()
            except BlockingIOError:
                return False
            return True


@_case
def its_network_is_off(lab: Lab) -> None:
    server = _Server()
    assert lab.run("connect", "127.0.0.1", str(server.port)).code != 0
    assert not server.waiting()


@_case
def a_connection_is_refused_by_name(lab: Lab) -> None:
    ran = refused(lab.run("connect", "192.0.2.1", "443"))
    assert any("--net 192.0.2.1:443" in refusal for refusal in ran.status["refusals"]), ran.status
    assert b"--net 192.0.2.1:443" in ran.err


@_case
def its_network_reaches_what_is_allowed(lab: Lab) -> None:
    server = _Server()
    flags = ("--net", f"127.0.0.1:{server.port}")
    ran = server.answer(lab.start("connect", "127.0.0.1", str(server.port), flags=flags))
    assert fine(ran).lines == ["hi"]


@_case
def its_network_resolves_what_is_allowed(lab: Lab) -> None:
    server = _Server()
    ran = server.answer(
        lab.start("connect", "localhost", str(server.port), flags=("--net", f"localhost:{server.port}"))
    )
    assert fine(ran).lines == ["hi"]


@_case
def its_network_reaches_nothing_else(lab: Lab) -> None:
    server, other = _Server(), _Server()
    flags = ("--net", f"127.0.0.1:{other.port}")
    assert lab.run("connect", "127.0.0.1", str(server.port), flags=flags).code == 1
    assert not server.waiting() and not other.waiting()


@_case
def a_published_port_leads_to_it(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    running = lab.start("listen", "8080", flags=("--publish", f"{port}:8080"))
    assert running.line() == "ready"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read() == b"hello"
    assert running.wait().code == 0


# Limits


def _limited(ran: Ran, limit: str) -> Ran:
    assert (ran.code, ran.status["ending"]["limit"]) == (124, limit), (ran.code, ran.status, ran.err[-2000:])
    return ran


@_case
def its_time_is_bounded(lab: Lab) -> None:
    _limited(lab.run("wait", flags=("--wall", "1s")), "wall")
    assert lab.leftovers() == []


@_case
def its_processor_time_is_bounded(lab: Lab) -> None:
    _limited(lab.run("spin", flags=("--cpu-time", "1s")), "cpu_time")


@_case
def its_memory_is_bounded(lab: Lab) -> None:
    ran = lab.run("eat", "2000", flags=("--memory", "128MiB"))
    assert ran.code != 0 and b"ate" not in ran.out, (ran.code, ran.err[-2000:])


@_case
def it_has_the_memory_it_was_given(lab: Lab) -> None:
    assert fine(lab.run("eat", "100", flags=("--memory", "512MiB"))).lines == ["ate 100"]


@_case
def its_output_is_bounded(lab: Lab) -> None:
    ran = _limited(lab.run("flood", flags=("--output", "64KiB")), "output")
    assert len(ran.out) <= 64 << 10


@_case
def processes_are_bounded(lab: Lab) -> None:
    ran = lab.run("fork", "500", flags=("--processes", "100"))
    started = [int(line.split()[1]) for line in ran.lines if line.startswith("started ")]
    assert not started or started[0] <= 100, ran
    assert lab.leftovers() == []


# Identity and surroundings


@_case
def no_descriptor_leaks_in(lab: Lab) -> None:
    ran = fine(lab.run("fds"))
    assert not [line for line in ran.lines if "secret" in line.lower()], ran.lines
    assert len(ran.lines) <= (0 if lab.runtime in ("native", "foreign", "wasm") else 64), ran.lines


@_case
def it_is_not_root(lab: Lab) -> None:
    assert int(fine(lab.run("uid")).lines[0]) != 0


@_case
def its_processes_are_numbered_apart(lab: Lab) -> None:
    assert int(fine(lab.run("pid")).lines[0]) < 1000


@_case
def what_it_leaves_running_is_ended(lab: Lab) -> None:
    fine(lab.run("orphan"))
    assert lab.leftovers() == []


@_case
def chance_is_new_in_each_run(lab: Lab) -> None:
    first, second = (fine(lab.run("random")).lines for _ in range(2))
    assert len(first[0]) == 16 and first != second


@_case
def a_layer_that_is_missing_is_no_run(lab: Lab) -> None:
    ran = lab.run("out", "ran", flags=("--require", "no such layer"))
    assert ran.code == 125 and ran.out == b"" and b"no such layer" in ran.err


@_case
def a_layer_that_holds_is_required(lab: Lab) -> None:
    ran = fine(lab.run("out", "ran", flags=("--require", "seccomp", "--require", "no new privileges")))
    assert {"seccomp", "no new privileges", "mount namespace", "network namespace"} <= set(ran.status["layers"])


@_case
def the_status_tells_the_story(lab: Lab) -> None:
    status = fine(lab.run("out", "x")).status
    assert status["runtime"] == lab.runtime
    assert {"ending", "runtime", "layers", "missing", "refusals", "timing", "usage"} <= set(status)
    assert status["timing"]["run"] >= 0


@_case
def it_is_asked_for_by_name(lab: Lab) -> None:
    assert fine(lab.run("out", "x", flags=("--vm", lab.runtime))).lines == ["x"]
