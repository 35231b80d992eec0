"""The policy of a program from what people write: the flags of `roost run`, keyword arguments of the SDK, YAML; and back again."""

from __future__ import annotations

import os

from roost.errors import Invalid, Problem
from roost.light import Any, Callable, Iterable, Mapping, NamedTuple, Sequence
from roost.model import duration, size
from roost.runtimes import policy_values as values
from roost.runtimes.base import Grant, Peer, Policy, Published
from roost.runtimes.policy_values import Place

MOST = 1024
"""Grants, variables, services, ports or layers of one policy."""

LAYERS = (
    "user namespace", "mount namespace", "pid namespace", "ipc namespace", "uts namespace", "cgroup namespace", "network namespace",
    "minimal root", "own uid", "no capabilities", "no new privileges", "landlock", "seccomp", "resource limits", "control group",
    "watchdog", "wasi", "fuel", "-Xmx",
)  # fmt: skip
"""What `--require` may name; a runtime of a third party may have layers of its own."""

NAMES = ("wasm", "jvm", "wine", "clr", "foreign", "native", "script")
"""The built-in runtimes, as `--vm` takes them."""


class Flag(NamedTuple):
    """One flag: `field` is the policy's field or the option it sets; no `metavar` means a switch. `many`: may be said several times.
    `bare`: its value may be left out, and stands behind `=` only. `choices` are for shell completion, and the only values when `closed`."""

    name: str
    metavar: str
    help: str
    field: str
    read: Callable[[str, Place], Any] = values.word
    many: bool = False
    bare: bool = False
    choices: tuple[str, ...] = ()
    closed: bool = False
    group: str = "policy"
    short: str = ""


FLAGS = (
    Flag("--fs", "HOST[:GUEST][:ro|rw]", "lend it a directory or file, to read and write unless :ro", "fs", values.grant, many=True),
    Flag("--env", "K[=V]", "set a variable; K alone passes the caller's value on", "env", values.variable, many=True),
    Flag("--net", "HOST:PORT", "let it connect to this TCP service", "net", values.peer, many=True),
    Flag("--publish", "[IP:]HOSTPORT:PORT", "lead a port of this host (127.0.0.1) to it", "publish", values.published, many=True),
    Flag("--memory", "SIZE", "memory (default 512MiB; none: no limit)", "memory", values.memory),
    Flag("--wall", "TIME", "end it after so long, as 10s or 5m", "wall", values.time),
    Flag("--cpu-time", "TIME", "end it after so much time on the CPU", "cpu_time", values.time),
    Flag("--fuel", "N", "end it after N WebAssembly instructions", "fuel", values.fuel),
    Flag("--processes", "N", "processes and threads (default 256)", "processes", values.processes),
    Flag("--files", "N", "open files (default 1024)", "files", values.files),
    Flag("--output", "SIZE", "bytes it may print", "output", values.amount),
    Flag("--tmp", "SIZE", "size of its private /tmp (default 256MiB)", "tmp", values.room),
    Flag("--gui", "", "lend it the display", "gui"),
    Flag("--require", "LAYER", "do not run without this layer of isolation", "require", values.layer, many=True, choices=LAYERS),
    Flag("--vm", "NAME", "the runtime (default: the best for the file's content)", "vm", choices=NAMES, group="run"),
    Flag("--learn", "FILE", "run a trusted program and write the least policy it used, to =FILE", "learn", bare=True, group="run"),
    Flag("--detach", "", "let the daemon keep it running in the background", "detach", group="run"),
    Flag("--name", "NAME", "its name, with --detach", "name", group="run"),
    Flag("--restart", "WHEN", "with --detach, whether it starts again after its end: no, on-failure, always", "restart",
         choices=("no", "on-failure", "always"), closed=True, group="run"),
    Flag("--status-json", "FD", "write how it ended to this open file", "status_json", values.descriptor, group="run"),
    Flag("--format", "FORMAT", "how to print objects", "format", choices=("table", "json", "yaml", "name"), closed=True, group="everywhere",
         short="-o"),
    Flag("--project", "P", "project (default: ROOST_PROJECT, else default)", "project", group="everywhere", short="-p"),
    Flag("--host", "URL", "daemon, as unix:/path (default: ROOST_HOST)", "host", group="everywhere"),
    Flag("--quiet", "", "print only what the program prints", "quiet", group="everywhere", short="-q"),
    Flag("--yes", "", "do not ask", "yes", group="everywhere", short="-y"),
    Flag("--help", "", "show this", "help", group="everywhere", short="-h"),
)  # fmt: skip
"""Every flag of `roost run` and `roost inspect`, in the order of their help."""

BY_NAME = {name: flag for flag in FLAGS for name in (flag.name, flag.short) if name}
_OF_POLICY = {flag.field: flag for flag in FLAGS if flag.group == "policy"}
_ONLY_DETACHED = ("name", "restart")
_NEVER_DETACHED = ("learn", "status_json")


class Parsed(NamedTuple):
    """A command line of `roost run`. `options` holds every flag that is not the policy's by its field (None or False where it was not said; of
    `learn` "" when no file was); `file` as it was written; `arguments` belong to the program, byte for byte."""

    options: dict[str, Any]
    policy: Policy
    file: str
    arguments: tuple[str, ...]


def parse(words: Sequence[str], cwd: str | None = None, environ: Mapping[str, str] | None = None) -> Parsed:
    """Flags up to FILE, which the rest follows; `--` may stand before FILE. Raises Invalid with everything that is wrong."""
    reading = _Reading(_place(cwd, environ))
    rest = reading.flags(words)
    options: dict[str, Any] = {flag.field: None if flag.metavar else False for flag in FLAGS if flag.group != "policy"}
    options.update((field, value) for field, value in reading.found.items() if field in options)
    if not rest and not options["help"]:
        reading.wrong("FILE", "say which program to run, as in roost run app.wasm")
    reading.wrongs += _fitting(options)
    policy = reading.policy("the command line is wrong", "roost run --help", "--")
    return Parsed(options, policy, rest[0] if rest else "", tuple(rest[1:]))


def _fitting(options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the options together."""
    wanted = _NEVER_DETACHED if options["detach"] else _ONLY_DETACHED
    reason = "does not go with --detach" if options["detach"] else "goes with --detach only"
    return [Problem(flag.name, reason) for flag in FLAGS if flag.field in wanted and options[flag.field] is not None]


def from_mapping(
    mapping: Mapping[str, Any], cwd: str | None = None, environ: Mapping[str, str] | None = None
) -> Policy:
    """The policy of keyword arguments or of a document, by the names of the fields of `Policy`.

    Values are written as on the command line (fs=["./data:ro"], memory="256MiB", wall="10s"), or are numbers (bytes, seconds), tuples of
    `runtimes.base`, or mappings with the names of their fields; env may be a mapping, where None takes the caller's value. None: no limit.
    Raises Invalid with everything that is wrong.
    """
    reading = _Reading(_place(cwd, environ))
    for field, value in mapping.items():
        flag = _OF_POLICY.get(field)
        if flag is None:
            reading.wrong(str(field), f"there is no such field; there are {', '.join(_OF_POLICY)}")
        elif not flag.metavar:
            reading.switch(field, value)
        else:
            for item in _items(flag, value):
                reading.take(flag, item, field)
    return reading.policy("the policy is wrong")


def to_mapping(policy: Policy, *, secrets: bool = True) -> dict[str, Any]:
    """The policy in JSON's types, all fields in their order; `from_mapping` reads it back. Without `secrets`, env is a list of names."""
    env: Any = dict(policy.env) if secrets else [name for name, _ in policy.env]
    return {
        "fs": [_grant_text(grant) for grant in policy.fs],
        "env": env,
        "net": [f"{_bracketed(peer.host)}:{peer.port}" for peer in policy.net],
        "publish": [f"{_bracketed(each.host_ip)}:{each.host_port}:{each.port}" for each in policy.publish],
        "memory": _size_text(policy.memory),
        "cpu_time": _time_text(policy.cpu_time),
        "wall": _time_text(policy.wall),
        "processes": policy.processes,
        "files": policy.files,
        "output": _size_text(policy.output),
        "tmp": size.exact(policy.tmp),
        "fuel": policy.fuel,
        "gui": policy.gui,
        "require": list(policy.require),
    }


class _Reading:
    """What was read so far, and what was wrong with it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.found: dict[str, Any] = {}
        self.wrongs: list[Problem] = []

    def wrong(self, where: str, what: str) -> None:
        self.wrongs.append(Problem(where, what))

    def flags(self, words: Sequence[str]) -> Sequence[str]:
        """Read the flags at the head of `words`; what follows them."""
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--":
                break
            if not word.startswith("-") or word == "-":
                return words[index - 1 :]
            index += self._flag(word, words[index] if index < len(words) else None)
        return words[index:]

    def _flag(self, word: str, following: str | None) -> int:
        """Read one flag; how many words after it were its value."""
        name, equals, value = word.partition("=")
        flag = BY_NAME.get(name)
        if flag is None:
            self.wrong(name, _unknown(name))
        elif equals and flag.metavar:
            self.take(flag, value, name)
        elif equals:
            self.wrong(name, "takes no value")
        elif flag.bare or not flag.metavar:
            self.found[flag.field] = "" if flag.bare else True
        elif following is None or following.startswith("--") or following in BY_NAME:
            self.wrong(name, f"needs a value: {name} {flag.metavar}")
        else:
            self.take(flag, following, name)
            return 1
        return 0

    def take(self, flag: Flag, item: Any, where: str) -> None:
        """Read one value of a flag, given as text, number, tuple or mapping."""
        try:
            value = _read(flag, item, self.place)
        except ValueError as error:
            self.wrong(where, str(error))
            return
        if not flag.many:
            self.found[flag.field] = value
        elif len(self.found.setdefault(flag.field, [])) < MOST:
            self.found[flag.field].append(value)
        else:
            self.wrong(where, f"there are more than {MOST}")

    def switch(self, field: str, value: Any) -> None:
        if isinstance(value, bool):
            self.found[field] = value
        else:
            self.wrong(field, f"{value!r} is neither true nor false")

    def policy(self, what: str, fix: str = "", dashes: str = "") -> Policy:
        """The policy that was read; its fields are called by their flags with `dashes`. Raises Invalid with everything that is wrong."""
        fields = {field: value for field, value in self.found.items() if field in _OF_POLICY}
        if "fs" in fields:
            fields["fs"], faults = values.arranged(fields["fs"])
            self.wrongs += [Problem(f"{dashes}fs", fault) for fault in faults]
        if "env" in fields:
            fields["env"] = tuple(dict(fields["env"]).items())
        for field in fields.keys() & {"net", "publish", "require"}:
            fields[field] = tuple(dict.fromkeys(fields[field]))
        if self.wrongs:
            raise Invalid(what, fix=fix, problems=self.wrongs[:100])
        return Policy(**fields)


def _place(cwd: str | None, environ: Mapping[str, str] | None) -> Place:
    return Place(os.getcwd() if cwd is None else cwd, os.environ if environ is None else environ)


def _unknown(name: str) -> str:
    from difflib import get_close_matches  # only for those who are wrong: it costs milliseconds

    near = get_close_matches(name, BY_NAME, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no such flag{hint} (what is meant for the program stands after FILE)"


def _items(flag: Flag, value: Any) -> Iterable[Any]:
    """The values that a field of a mapping holds; None where it has a limit that can be none, and nothing where it can not."""
    if value is None:
        return () if flag.many or flag.field in ("processes", "files", "tmp") else ("none",)
    if isinstance(value, Mapping) and flag.field == "env":
        return [str(name) if text is None else f"{name}={text}" for name, text in value.items()]
    if (
        flag.many
        and isinstance(value, Iterable)
        and not isinstance(value, str | bytes | Mapping | Grant | Peer | Published)
    ):
        return value
    return (value,)


def _read(flag: Flag, item: Any, place: Place) -> Any:
    if isinstance(item, os.PathLike):
        item = os.fspath(item)
    if isinstance(item, str):
        if flag.closed and item not in flag.choices:
            raise ValueError(f"{item!r} is none of {', '.join(flag.choices)}")
        return flag.read(item, place)
    if isinstance(item, int | float) and not isinstance(item, bool) and not flag.many:
        return flag.read(f"{item:.6f}".rstrip("0").rstrip(".") if isinstance(item, float) else str(item), place)
    if flag.field in _PARTS:
        return _from_parts(flag, item, place)
    raise ValueError(f"{item!r} is not {flag.metavar}")


_PARTS: Mapping[str, type[Any]] = {"fs": Grant, "net": Peer, "publish": Published, "env": tuple}


def _from_parts(flag: Flag, item: Any, place: Place) -> Any:
    """A value given as a tuple of `runtimes.base`, or as a mapping with the same names."""
    try:
        if flag.field == "env":
            name, value = item
            return values.variable(f"{name}={value}", place)
        made = _PARTS[flag.field](**item) if isinstance(item, Mapping) else _PARTS[flag.field](*item)
        if isinstance(made, Grant):
            return values.granted(made.source, made.target, writable=bool(made.writable), place=place)
        parts = (_bracketed(str(made[0])), *map(str, made[1:]))
        return flag.read(":".join(parts), place)
    except TypeError:
        raise ValueError(f"{item!r} is not {flag.metavar}") from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _grant_text(grant: Grant) -> Any:
    if ":/" in grant.source + grant.target:
        return grant._asdict()
    return f"{grant.source}:{grant.target}:{'rw' if grant.writable else 'ro'}"


def _size_text(count: int | None) -> str | None:
    return None if count is None else size.exact(count)


def _time_text(seconds: float | None) -> str | None:
    return None if seconds is None else duration.show(seconds)
