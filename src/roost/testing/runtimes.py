"""The conformance suite of `roost.runtimes.base.Runtime`: what any runtime must do with a program, as cases that need no test framework.

Each case runs the probe program of a runtime (a small language of verbs, the same for all: tests/programs) by `roost run` and looks at what
comes of it. What a platform can not express at all stands in `INEXPRESSIBLE` with the reason; nothing else may be left out.
"""

from __future__ import annotations

from collections.abc import Callable

from roost.testing import conduct, confinement
from roost.testing.lab import Case, Lab

CASES: tuple[Case, ...] = (*conduct.CASES, *confinement.CASES)

_WINDOWS = "Windows has no such thing"
_WASI = "WASI preview 1 has no such thing"
_JAVA = "Java has no such thing"
_CLASSES = "the class library has no such thing"
INEXPRESSIBLE: dict[str, dict[str, str]] = {
    "wasm": {
        "a_handler_gets_the_signal": _WASI,
        "a_signal_to_itself_is_128_and_its_number": _WASI,
        "its_network_reaches_what_is_allowed": _WASI,
        "its_network_reaches_nothing_else": _WASI,
        "its_network_resolves_what_is_allowed": _WASI,
        "a_published_port_leads_to_it": _WASI,
        "a_connection_is_refused_by_name": _WASI,
        "processes_are_bounded": _WASI,
        "what_it_leaves_running_is_ended": _WASI,
        "it_is_not_root": _WASI,
        "its_processes_are_numbered_apart": _WASI,
        "no_descriptor_leaks_in": "WASI hands out descriptors of its own, never those of the host",
        "its_directory_is_the_caller_s": "WASI programs begin in no directory",
    },
    "jvm": {
        "a_signal_to_itself_is_128_and_its_number": _JAVA,
        "abort_is_an_end_with_a_code": _JAVA,
        "a_terminal_is_a_terminal": _JAVA,
        "pipes_are_no_terminal": _JAVA,
    },
    "wine": {
        "a_handler_gets_the_signal": _WINDOWS,
        "a_signal_to_itself_is_128_and_its_number": _WINDOWS,
        "a_variable_may_be_empty": "Windows takes an empty variable for none",
        "it_is_not_root": _WINDOWS,
        "no_descriptor_leaks_in": "Windows has handles, and Wine gives a program none of the host's",
    },
    "clr": {
        "a_handler_gets_the_signal": _CLASSES,
        "a_signal_to_itself_is_128_and_its_number": _CLASSES,
        "abort_is_an_end_with_a_code": _CLASSES,
        "a_terminal_is_a_terminal": _CLASSES,
        "pipes_are_no_terminal": _CLASSES,
        "no_descriptor_leaks_in": _CLASSES,
        "it_is_not_root": _CLASSES,
    },
}
"""By runtime: the cases that its platform can not express, and why."""


def check_runtime(lab: Callable[[], Lab]) -> None:
    """Run every case that the runtime's platform can express, each in a lab of its own. Raises AssertionError."""
    for case in CASES:
        one = lab()
        if not reason_against(one.runtime, case):
            case(one)


def reason_against(runtime: str, case: Case) -> str:
    """Why a case can not be expressed for a runtime; "" when it can."""
    return INEXPRESSIBLE.get(runtime, {}).get(case.__name__, "")
