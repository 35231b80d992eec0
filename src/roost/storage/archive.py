"""A private view of the Debian archive that the host is configured for: any suite, any architecture, nothing of the host's apt changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from roost import log
from roost.errors import RoostError, Unavailable
from roost.host import files, system
from roost.model.meta import Arch

DEBIAN_ARCH: Mapping[Arch, str] = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_CODENAMES = "buster|bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable"
_SUITE = re.compile(rf"(?:{_CODENAMES})(-updates|-security)?")
_NETWORK = re.compile(r"Acquire::(?:https?|Retries|ForceIPv|Check-Valid|Max-ValidTime|Queue|proxy)", re.IGNORECASE)
_QUERY, _UPDATE, _DOWNLOAD = 60.0, 300.0, 1800.0
_SOURCES_LIMIT = 1 << 20


class Source(NamedTuple):
    """One suite of one archive, component main. `signed_by` is a keyring's path, "" for apt's own trust."""

    uri: str
    suite: str
    signed_by: str

    def line(self) -> str:
        """The entry as sources.list(5) wants it."""
        options = f" [signed-by={self.signed_by}]" if self.signed_by else ""
        return f"deb{options} {self.uri} {self.suite} main\n"


def parse_list(text: str) -> list[Source]:
    """The binary entries with component main of a one-line sources.list file."""
    found: list[Source] = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*?)\s*(?:#.*)?", line)
        if match and "main" in match[4].split():
            signed = re.search(r"signed-by=(\S+)", match[1] or "", re.IGNORECASE)
            found.append(Source(match[2], match[3], signed[1] if signed else ""))
    return found


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary entries with component main of a `.sources` file."""
    found: list[Source] = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields = {
            key.lower(): value.strip() for key, value in re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza)
        }
        binary = "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no"
        if binary and "main" in fields.get("components", "").split():
            signed = fields.get("signed-by", "")
            found += [
                Source(uri, suite, signed if signed.startswith("/") and " " not in signed else "")
                for uri in fields.get("uris", "").split()
                for suite in fields.get("suites", "").split()
            ]
    return found


def derive(host: Iterable[Source], suite: str, mirror: str = "", keyring: str = "") -> list[Source]:
    """The entries of Debian `suite` from the host's own ones: same servers and keyrings, another code name.

    `mirror`, when given, replaces them all. `keyring` is used where an entry names none. Empty when the host has no Debian archive.
    """
    if mirror:
        return [Source(mirror, suite, keyring)]
    known = [source for source in host if _SUITE.fullmatch(source.suite)]
    # A third party may use Debian's code names for its own archive; Debian's is the one its keyring signs.
    debian = [source for source in known if not source.signed_by or "debian-archive" in source.signed_by] or known
    renamed = [
        Source(source.uri, re.sub(rf"^(?:{_CODENAMES})", suite, source.suite), source.signed_by or keyring)
        for source in debian
    ]
    return list(dict.fromkeys(renamed))


def host_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """What the host's apt is configured for."""
    found: list[Source] = []
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = files.read_bounded(path, _SOURCES_LIMIT).decode(errors="replace")
            found += parse_list(text) if path.suffix == ".list" else parse_deb822(text)
    return found


def sources_for(suite: str, mirror: str = "") -> list[Source]:
    """The host's entries for Debian `suite`. Raises Unavailable when it has none."""
    sources = derive(host_sources(), suite, mirror, str(KEYRING) if KEYRING.exists() else "")
    if not sources:
        raise Unavailable(
            f"Debian {suite} cannot be fetched",
            "no entry of the host's apt sources is a Debian archive",
            "export ROOST_DEBIAN_MIRROR=URL of a Debian mirror, install debian-archive-keyring, restart the daemon",
        )
    return sources


def require(programs: Sequence[str]) -> None:
    """Nothing, when all these programs are installed. Raises Unavailable with one line that installs all that are missing."""
    missing: list[str] = []
    packages: list[str] = []
    for program in programs:
        try:
            system.find_program(program)
        except Unavailable as error:
            missing.append(program)
            packages.append(error.fix.rpartition(" ")[2])
    if missing:
        line = "sudo apt-get install --no-install-recommends " + " ".join(sorted(set(packages)))
        raise Unavailable("the template cannot be built", f"not installed: {', '.join(missing)}", line)


def bound(argv: Sequence[str]) -> list[str]:
    """`argv` so that it dies with the daemon, however that ends: nothing goes on writing to a build nobody owns."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


async def checked(
    argv: Sequence[str], what: str, *, timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> bytes:
    """What a tool prints; `env` is added to the clean environment. Raises Unavailable with its last words when it fails."""
    environment = {**system.clean_environment(), **(env or {})}
    finished = await system.run(bound(argv), timeout=timeout, cwd=cwd, env=environment)
    if finished.code:
        raise failed(what, finished.code, (finished.stderr or finished.stdout).decode(errors="replace").splitlines())
    return finished.stdout


def failed(what: str, code: int, lines: Sequence[str]) -> RoostError:
    """The error of a tool that ended with `code` after printing `lines`."""
    telling = [line for line in lines if line.startswith(("E:", "W:"))] or [line for line in lines if line.strip()]
    why = "; ".join(line.strip()[:300] for line in telling[-3:]) or f"it ended with code {code}"
    if "Mirror sync in progress" in why:
        return Unavailable(
            what, why, "wait until the mirror is updated, or name another: export ROOST_DEBIAN_MIRROR=URL"
        )
    return Unavailable(
        what, why, "try `sudo apt-get update` on the host: if that fails too, its archive cannot be reached"
    )


def network_settings(dump: str) -> str:
    """Of `apt-config dump`, the lines that say how the host reaches its archive (proxies, retries, certificates), nothing it runs."""
    return "".join(f"{line}\n" for line in dump.splitlines() if _NETWORK.match(line))


async def host_network() -> str:
    """The host's apt settings for the network, as lines of an apt.conf. Raises Unavailable."""
    dump = await checked(["apt-config", "dump"], "the host's apt configuration was not read", timeout=60)
    return network_settings(dump.decode(errors="replace"))


def usable(sources: Iterable[Source], lists: Iterable[str], arch: str) -> list[Source]:
    """The entries that have a package list among apt's files `lists`."""
    names = tuple(lists)
    return [
        source
        for source in sources
        if any(f"_dists_{source.suite.replace('/', '_')}_main_binary-{arch}_Packages" in name for name in names)
    ]


class Archive:
    """One suite for one architecture, with apt's state in a directory of its own."""

    def __init__(self, directory: Path, what: str) -> None:
        self._directory = directory
        self._what = what
        self.sources: list[Source] = []
        """The entries whose package lists are there: a mirror may be in the middle of an update of a lesser suite."""

    @classmethod
    async def open(cls, directory: Path, sources: Sequence[Source], arch: Arch) -> Archive:
        """Fetch the package lists into `directory` (new). Raises Unavailable."""
        require(["apt-get", "dpkg-deb", "setpriv"])
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (directory / name).mkdir(parents=True)
        (directory / "sources.list").write_text("".join(source.line() for source in sources))
        (directory / "status").touch()
        (directory / "apt.conf").write_text(_configuration(directory, DEBIAN_ARCH[arch]) + await host_network())
        archive = cls(directory, f"Debian packages for {arch} were not fetched")
        environment = {**system.clean_environment(), "APT_CONFIG": str(directory / "apt.conf")}
        done = await system.run(bound(["apt-get", "-q", "update"]), timeout=_UPDATE, env=environment)
        lists = [path.name for path in (directory / "lists").iterdir()]
        archive.sources = usable(sources, lists, DEBIAN_ARCH[arch])
        if not any(source.suite == sources[0].suite for source in archive.sources):
            raise failed(archive._what, done.code, done.stderr.decode(errors="replace").splitlines())
        for source in set(sources) - set(archive.sources):
            log.get(__name__).warning("archive entry left out: its lists were not fetched", entry=source.line().strip())
        return archive

    async def dependency(self, package: str, pattern: str) -> str:
        """The first dependency of `package` whose name matches: the kernel behind a meta package. Raises Unavailable."""
        shown = await self._apt("apt-cache", "show", "--no-all-versions", package, timeout=_QUERY)
        depends = " ".join(line for line in shown.decode().splitlines() if line.startswith("Depends:"))
        for word in re.split(r"[\s,|]+", depends):
            if re.fullmatch(pattern, word):
                return word
        raise Unavailable(self._what, f"{package} depends on nothing like {pattern}")

    async def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Fetch `packages` (verified by apt) and unpack them, scripts not run, below `into`. Raises Unavailable."""
        into.mkdir(parents=True, exist_ok=True)
        await self._apt("apt-get", "-q", "download", *packages, timeout=_DOWNLOAD)
        for deb in sorted((self._directory / "debs").glob("*.deb")):
            await checked(["dpkg-deb", "--extract", str(deb), str(into)], self._what, timeout=_UPDATE)
            deb.unlink()

    async def _apt(self, *argv: str, timeout: float) -> bytes:
        environment = {"APT_CONFIG": str(self._directory / "apt.conf")}
        return await checked(argv, self._what, timeout=timeout, cwd=self._directory / "debs", env=environment)


def _configuration(directory: Path, arch: str) -> str:
    """An apt.conf that leads away from all of the host's files but its keyrings and passwords for archives."""
    settings = {
        "Dir::Etc::Parts": "/dev/null",
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::SourceList": directory / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": directory,
        "Dir::State::Lists": directory / "lists",
        "Dir::State::Status": directory / "status",
        "Dir::Cache": directory / "cache",
        "APT::Architecture": arch,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    lines = [f'{name} "{value}";\n' for name, value in settings.items()]
    return "".join(lines) + f'APT::Architectures {{ "{arch}"; }};\n'
