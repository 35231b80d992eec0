"""Following a log over every change of its files."""

from __future__ import annotations

from pathlib import Path

from roost.host.outputlog import OutputLog, Tail


def test_a_reader_follows_over_a_change_of_files(tmp_path: Path) -> None:
    log, tail = OutputLog(tmp_path / "log", 10), Tail(tmp_path / "log")
    read = b""
    for number in range(20):
        log.write(b"line%d\n" % number)
        read += tail.read() + tail.read()
    tail.close()
    assert read == b"".join(b"line%d\n" % number for number in range(20))


def test_a_reader_begins_with_the_older_file(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "log", 10)
    for text in (b"first\n", b"second\n"):
        log.write(text)
    tail = Tail(tmp_path / "log")
    assert (tail.read(), tail.read(), tail.read()) == (b"first\n", b"second\n", b"")
    tail.close()


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.read() == b""
    OutputLog(tmp_path / "log").write(b"late")
    assert tail.read() == b"late"
    tail.close()
