import signal as signal
from collections.abc import Callable as Callable
from collections.abc import Iterable as Iterable
from collections.abc import Iterator as Iterator
from collections.abc import Mapping as Mapping
from collections.abc import Sequence as Sequence
from collections.abc import Set as Set
from contextlib import AbstractContextManager
from contextlib import suppress as suppress
from importlib import import_module as import_module
from typing import Any as Any
from typing import NamedTuple as NamedTuple
from typing import ParamSpec, TypeVar
from typing import Protocol as Protocol
from typing import TypedDict as TypedDict
from typing import Unpack as Unpack

_T = TypeVar("_T")
_P = ParamSpec("_P")

class ExitStack:
    def __enter__(self) -> ExitStack: ...
    def __exit__(self, *_: object) -> None: ...
    def callback(self, call: Callable[_P, _T], /, *values: _P.args, **named: _P.kwargs) -> Callable[_P, _T]: ...
    def enter_context(self, context: AbstractContextManager[_T]) -> _T: ...
    def close(self) -> None: ...
