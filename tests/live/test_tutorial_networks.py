"""The tutorial and the how-to of networks, followed word by word, by root and by an ordinary user: what it says is said."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers, pool
from tests.checkout import ROOT
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root
from tests.ordinary import WHO, require_tun
from tests.somebody import Ordinary, processes, python_for

pytestmark = [
    needs_root,
    needs_program("qemu-system-x86_64", "nft", "dnsmasq", "pasta", "curl"),
    pytest.mark.timeout(300),
]

UID = 12347
"""Not the user of other tests, all of whose processes they end."""
CHECK = doctest.OutputChecker()


class Follower:
    """Somebody who has a directory of his own, with the sources, and types what a document says."""

    def __init__(self, who: str, home: Path) -> None:
        self.uid = UID if who == "user" else 0
        self.home = home
        python = python_for(home, UID) if self.uid else sys.executable
        self.somebody = Ordinary(home, python, self.uid)
        (home / "bin").mkdir()
        program = home / "bin/roost"
        program.write_text(f'#!/bin/sh\nexec {python} -m roost.cli.main "$@"\n')
        program.chmod(0o755)
        self.somebody.environ["PATH"] = f"{home / 'bin'}:{self.somebody.environ['PATH']}"

    def types(self, command: str) -> str:
        """What a shell with this command prints; what it leaves in the background is not waited for."""
        with tempfile.TemporaryFile("w+") as terminal:
            subprocess.run(
                ["sh", "-c", command],
                env=self.somebody.environ, cwd=self.home, user=self.uid, group=self.uid, extra_groups=(),
                stdout=terminal, stderr=terminal, timeout=120, check=False,
            )  # fmt: skip
            terminal.seek(0)
            return "".join(line for line in terminal if not line.startswith("warning: "))


@pytest.fixture(params=WHO)
def follower(request: pytest.FixtureRequest) -> Iterator[Follower]:
    """Root, or an ordinary user, with the images of the pool; nothing is left of what he did."""
    require_tun()
    home = Path(tempfile.mkdtemp(prefix="roost-user-", dir="/tmp"))
    try:
        for name in ("src", "guest"):
            shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        _give_images(home)
        home.chmod(0o755)
        subprocess.run(["chown", "-R", f"{UID}:{UID}" if request.param == "user" else "0:0", home], check=True)
        who = Follower(request.param, home)
        yield who
        who.types("roost delete --all --yes; roost serve --stop")
        left = leftovers.wait_until_none(who.somebody.state, who.somebody.run)
    finally:
        for pid in processes(UID):
            os.kill(pid, 9)
        shutil.rmtree(home, ignore_errors=True)
    assert left == [], "left behind:\n" + "\n".join(left)


def _give_images(home: Path) -> None:
    """A copy of the small template, where the pool has it: links to root's files could not be deleted."""
    linked = pool.new_state()
    try:
        pool.fill(linked)
        for recipe in (linked / "recipes").glob("*"):
            image = linked / "images" / recipe.readlink().name
            if '"none"' in (image / "manifest.json").read_text():
                shutil.copytree(image, home / "state/images" / image.name, dirs_exist_ok=True)
                (home / "state/recipes").mkdir(exist_ok=True)
                (home / "state/recipes" / recipe.name).symlink_to(recipe.readlink())
    finally:
        shutil.rmtree(linked)


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def steps(text: str) -> list[tuple[str, str]]:
    """The commands of a document, each with what it prints; `...` stands for anything."""
    typed = "".join(blocks(text, "console"))
    found = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", typed, re.MULTILINE)
    return [(command.replace("\n> ", "\n"), output) for command, output in found]


def follow(follower: Follower, text: str) -> None:
    """Type everything that the document says, and compare."""
    said = [(command, wanted, follower.types(command)) for command, wanted in steps(text)]
    wrong = [it for it in said if not CHECK.check_output(it[1], it[2], doctest.ELLIPSIS)]
    assert len(said) >= 20
    assert wrong == [], "\n".join(f"$ {command}{got}--- wanted:\n{wanted}" for command, wanted, got in wrong)


def test_the_tutorial_says_what_happens(follower: Follower) -> None:
    text = (ROOT / "docs/tutorial/three-tier-application.md").read_text().replace("8080", str(free_port()))
    (document,), (script,) = blocks(text, "yaml"), blocks(text, "sh")
    (follower.home / "shop.yaml").write_text(document)
    (follower.home / "shop.sh").write_text(script)
    follow(follower, text)


def test_the_howto_says_what_happens(follower: Follower) -> None:
    follow(follower, (ROOT / "docs/howto/networks.md").read_text().replace("8080", str(free_port())))


@pytest.mark.parametrize("follower", ["user"], indirect=True)
def test_what_takes_links_of_the_host_is_refused_to_a_user(follower: Follower) -> None:
    (document,) = blocks((ROOT / "docs/howto/networks.md").read_text(), "yaml")
    (follower.home / "wide.yaml").write_text(document)
    said = [
        follower.types("roost network create office --mode bridged --interface br0"),
        follower.types("roost network create open --mode routed --subnet 10.50.0.0/24"),
        follower.types("roost apply -f wide.yaml; sleep 2; roost network show wide"),
    ]
    follower.types("roost network delete office open wide")
    assert ["does not work" in text for text in said[:2]] == [True] * 2, "\n".join(said)
    assert ["is root's" in text for text in said] == [True] * 3, "\n".join(said)
