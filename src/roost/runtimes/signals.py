"""The signals that `roost run` gets and its program is to have: taken from a descriptor, with the knowledge of who sent them."""

from __future__ import annotations

import _thread
import os
import struct

from roost.host import kernel
from roost.light import NamedTuple, signal

_FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT,
    signal.SIGTSTP,
)  # fmt: skip
_SIGNALFD4 = {"x86_64": 289}  # arch/x86/entry/syscalls/syscall_64.tbl
_SIGNALFD4_ELSEWHERE = 74  # include/uapi/asm-generic/unistd.h
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_RECORD = 128  # sizeof(struct signalfd_siginfo)
_SI_KERNEL = 0x80


class Signal(NamedTuple):
    """One that arrived. `terminal`: the kernel sent it, for a key or the end of a terminal, and to the whole foreground group."""

    number: int
    terminal: bool


class Signals:
    """While it is open, the signals a program may be sent do nothing to this process but appear at `descriptor`.

    Not in a thread other than the main one (`descriptor` is -1): there a library is run by somebody who has signals of his own.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        if _thread.get_native_id() != os.getpid():
            return
        # What we were told to ignore (nohup, a shell's "&") would still appear at the descriptor.
        taken = [number for number in _FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
        mask = sum(1 << (number - 1) for number in taken)
        call = _SIGNALFD4.get(os.uname().machine, _SIGNALFD4_ELSEWHERE)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        self.descriptor = kernel.syscall(call, -1, struct.pack("=Q", mask), 8, _FLAGS)

    def take(self) -> tuple[Signal, ...]:
        """What has arrived since."""
        try:
            data = os.read(self.descriptor, _RECORD * 64)
        except BlockingIOError:
            return ()
        fields = (struct.unpack_from("=Iii", data, offset) for offset in range(0, len(data), _RECORD))
        return tuple(Signal(number, code == _SI_KERNEL) for number, _, code in fields)

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        """Let them do again what they did before."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def stop_ourselves() -> None:
    """Stop as Ctrl-Z stops a program, so that a shell sees a stopped job; returns when somebody continues us."""
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTSTP,))
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTSTP,))
