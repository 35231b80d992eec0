"""The list of verbs: which module holds each, and its one line of help. Everything else about a verb is in its module."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb is and what it does, for `roost --help`. A group of "" hides it."""

    name: str
    module: str
    summary: str
    group: str


class Command(NamedTuple):
    """What a verb's module says about it. `run` gets a Context (an Output when the verb is `local`: it needs no daemon, and not what
    talking to one needs) and the parsed options; `words`: what follows `--` belongs to the guest, not to us; `program`: its words are those of
    `roost run`, and the parsed ones are in `given.program` (a `runtimes.policy.Parsed`)."""

    arguments: Callable[[ArgumentParser], None]
    run: Callable[..., int]
    example: str
    words: bool = False
    local: bool = False
    program: bool = False


VERBS = (
    Verb("launch", "launch", "make a machine and start it", "Machines"),
    Verb("list", "look", "list machines and programs", "Machines"),
    Verb("show", "look", "show all about machines and programs", "Machines"),
    Verb("start", "power", "start machines and programs", "Machines"),
    Verb("stop", "power", "shut machines down, and end programs", "Machines"),
    Verb("restart", "power", "stop machines and programs and start them again", "Machines"),
    Verb("pause", "power", "stop the virtual CPUs of machines", "Machines"),
    Verb("resume", "power", "let paused machines go on", "Machines"),
    Verb("rename", "power", "give a machine another name", "Machines"),
    Verb("delete", "delete", "delete machines and programs, or an object of another kind", "Machines"),
    Verb("clone", "clone", "copy a machine, with its memory while it runs", "Machines"),
    Verb("snapshot", "snapshots", "keep an instant of a machine: memory and disk", "Machines"),
    Verb("snapshots", "snapshots", "list snapshots", "Machines"),
    Verb("restore", "clone", "put a machine back to a snapshot", "Machines"),
    Verb("machine", "appliances", "bring machines in from elsewhere, and take them there", "Machines"),
    Verb("run", "programflags", "run a program made for any platform, in a sandbox", "Programs"),
    Verb("program", "programs", "look after what the daemon keeps running", "Programs"),
    Verb("inspect", "inspect", "say what a program is, what runs it, and under which policy", "Programs"),
    Verb("exec", "inside", "run a command in a machine", "Inside a machine"),
    Verb("shell", "inside", "open a shell in a machine", "Inside a machine"),
    Verb("console", "inside", "attach to a machine's serial console", "Inside a machine"),
    Verb("copy", "files", "copy files into or out of a machine", "Inside a machine"),
    Verb("logs", "files", "show what a machine's console, or a program, printed", "Inside a machine"),
    Verb("template", "images", "list, build, publish and delete templates", "Images"),
    Verb("image", "images", "list, import, show and delete images", "Images"),
    Verb("network", "networks", "make private networks, plug machines in, see what passes", "Networks"),
    Verb("ruleset", "networks", "say what may pass the ports of machines", "Networks"),
    Verb("forward", "networks", "lead ports of this host to machines", "Networks"),
    Verb("volume", "volumes", "make disks that outlive machines; attach, grow, move, copy and keep them", "Storage"),
    Verb("pool", "pools", "say where volumes live, and see how full that is", "Storage"),
    Verb("apply", "declare", "make the host as a file says", "Objects"),
    Verb("diff", "declare", "show what apply would change", "Objects"),
    Verb("get", "look", "print objects of any kind", "Objects"),
    Verb("edit", "declare", "change an object in your editor", "Objects"),
    Verb("events", "look", "show what happened", "Objects"),
    Verb("project", "projects", "create projects and say who may use them", "Host"),
    Verb("node", "look", "list nodes", "Host"),
    Verb("doctor", "doctor", "say what this host lacks, and how to get it", "Host"),
    Verb("serve", "serve", "run the daemon, or stop it", "Host"),
    Verb("version", "serve", "print the versions of command and daemon", "Host"),
    Verb("completion", "completion", "print shell completion", "Host"),
    Verb("__complete", "completion", "", ""),
)

BY_NAME = {verb.name: verb for verb in VERBS}
