"""Shell completion: a script for each shell, which asks the hidden verb `__complete` for what may come next."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace, _SubParsersAction

from roost.cli import VALUED
from roost.cli.context import Context
from roost.cli.look import KINDS, project_of
from roost.cli.verbs import BY_NAME, VERBS, Command
from roost.errors import RoostError

BASH = """\
_roost() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(roost __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _roost roost
"""
ZSH = """\
#compdef roost
_roost() {
  local -a found
  found=(${(f)"$(roost __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  (( $#found )) && compadd -a found || _files
}
compdef _roost roost
"""
FISH = """\
function __roost_complete
    set -l words (commandline -opc) (commandline -ct)
    roost __complete -- $words[2..-1] 2>/dev/null
end
complete -c roost -f -a '(__roost_complete)'
complete -c roost -F -n '__fish_seen_subcommand_from run inspect copy apply diff import upload launch'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def _completion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS))


def _completion(context: Context, given: Namespace) -> int:
    print(SCRIPTS[given.shell], end="")
    return 0


def _complete_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("command", metavar="WORD", nargs=REMAINDER)


def _complete(context: Context, given: Namespace) -> int:
    context.autostart = False  # pressing a key must not start a daemon
    words = given.command or [""]
    try:
        found = candidates(context, words[:-1], words[-1])
    except (RoostError, OSError):
        return 0
    print("\n".join(word for word in found if word.startswith(words[-1])))
    return 0


def candidates(context: Context, before: list[str], current: str) -> list[str]:
    """What the word after `before` may be."""
    values = {index + 1 for index, word in enumerate(before) if word in VALUED}
    verb = next((word for index, word in enumerate(before) if not word.startswith("-") and index not in values), None)
    if verb is None:
        return [known.name for known in VERBS if known.group]
    if verb not in BY_NAME or "--" in before:
        return []
    parser = _parser(verb)
    rest = before[before.index(verb) + 1 :]
    nested = next((action for action in parser._actions if isinstance(action, _SubParsersAction)), None)
    if nested is not None:
        action = next((word for word in rest if word in nested.choices), None)
        if action is None:
            return list(nested.choices)
        parser, verb = nested.choices[action], f"{verb} {action}"
    if current.startswith("-"):
        return [option for known in parser._actions for option in known.option_strings]
    if before[-1] in _OF_OPTION:
        return _list(context, _OF_OPTION[before[-1]])
    choices = _choices(parser, before[-1])
    return choices if choices is not None else _names(context, verb, rest)


def _parser(verb: str) -> ArgumentParser:
    from roost.cli.dispatch import command_of, parser_of

    return parser_of(BY_NAME[verb], command_of(BY_NAME[verb]))


def _choices(parser: ArgumentParser, option: str) -> list[str] | None:
    """The values of the option that was written last; None when it takes none that are known."""
    for action in parser._actions:
        if option in action.option_strings and action.choices:
            return [str(choice) for choice in action.choices]
    return None


_OF_KIND = {
    "image show": "image", "image delete": "image", "template delete": "image", "template publish": "image",
    "program show": "program", "program logs": "program", "program start": "program", "program stop": "program",
    "program restart": "program", "program upload": "program", "program delete": "program",
    "network show": "network", "network delete": "network", "network attach": "network", "network detach": "network",
    "network trace": "machine", "network port": "machine", "network capture": "machine", "ruleset show": "ruleset", "ruleset set": "ruleset",
    "ruleset delete": "ruleset", "forward show": "forward", "forward delete": "forward",
    "volume show": "volume", "volume attach": "volume", "volume detach": "volume", "volume grow": "volume", "volume move": "volume",
    "volume rename": "volume", "volume limit": "volume", "volume protect": "volume", "volume share": "volume", "volume snapshot": "volume",
    "volume snapshots": "volume", "volume clone": "volume", "volume restore": "volume", "volume delete": "volume",
    "pool show": "pool", "pool delete": "pool",
    "project delete": "project", "project grant": "project", "project revoke": "project",
}  # fmt: skip
_SECOND = {
    "volume attach": "machine",
    "volume detach": "machine",
    "volume move": "pool",
    "network attach": "machine",
    "network detach": "machine",
}
"""What the second word of an action names."""
_OF_OPTION = {
    "--ruleset": "ruleset",
    "--rulesets": "ruleset",
    "--volume": "volume",
    "--pool": "pool",
    "--image": "image",
}
_MACHINE = {
    "show", "start", "stop", "restart", "pause", "resume", "rename", "delete", "exec", "shell", "console", "copy", "logs", "events",
    "snapshot", "snapshots",
}  # fmt: skip
_OR_PROGRAM = {"show", "start", "stop", "restart", "delete", "logs", "events"}
_WORDS = {
    "doctor": ["host", "jail", "storage", "network", "java", "windows", "clr", "foreign"],
    "completion": list(SCRIPTS),
}


def _names(context: Context, verb: str, rest: list[str]) -> list[str]:
    if verb in _WORDS:
        return _WORDS[verb]
    if verb in ("get", "edit") and (not rest or rest[0] not in KINDS):
        return list(KINDS)
    if verb == "launch":
        return ["tiny", "debian:12", "debian:13", *_list(context, "image")]
    if verb in ("clone", "restore"):
        return _copyable(context, verb, rest)
    named = verb in ("get", "edit", "delete") and rest and rest[0] in KINDS
    kind = rest[0] if named else "machine" if verb in _MACHINE else _OF_KIND.get(verb)
    if verb in _SECOND and len([word for word in rest if not word.startswith("-")]) > 1:
        kind = _SECOND[verb]
    names = _list(context, kind) if kind else []
    if verb in _OR_PROGRAM and not named:
        names += _list(context, "program")
    return [f"{name}:" for name in names] if verb == "copy" else [name for name in names if name not in rest]


def _copyable(context: Context, verb: str, rest: list[str]) -> list[str]:
    """What can be cloned; a machine to be restored, then its snapshots. Further words are new names."""
    words = [word for word in rest if not word.startswith("-")]
    if verb == "clone":
        return [] if words else [*_list(context, "machine"), *_list(context, "snapshot")]
    if not words:
        return _list(context, "machine")
    parts = [name.partition(".") for name in _list(context, "snapshot")]
    return [own for machine, _, own in parts if machine == words[0]]


def _list(context: Context, kind: str) -> list[str]:
    return [str(item["name"]) for item in context.items(KINDS[kind], project=project_of(context, kind))]


COMMANDS = {
    "completion": Command(
        _completion_arguments, _completion, "source <(roost completion bash)\nroost completion fish | source"
    ),
    "__complete": Command(_complete_arguments, _complete, "roost __complete -- start we", words=True),
}
