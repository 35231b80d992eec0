"""What stands in for heavy modules of the standard library behaves like them, as far as it goes."""

from __future__ import annotations

import contextlib
import pickle
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost import light


class Ours(light.NamedTuple):
    """A record of ours."""

    first: int
    second: str = "b"
    third: tuple[int, ...] = ()

    def doubled(self) -> int:
        """A method."""
        return 2 * self.first


class Theirs(typing.NamedTuple):
    """The same by typing."""

    first: int
    second: str = "b"
    third: tuple[int, ...] = ()


VALUES = st.tuples(st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3).map(tuple))


@given(VALUES, st.integers(1, 3))
def test_a_record_is_made_shown_and_compared_as_a_named_tuple(values: tuple[typing.Any, ...], count: int) -> None:
    ours, theirs = Ours(*values[:count]), Theirs(*values[:count])
    named = dict(zip(Ours._fields, values[:count], strict=False))
    assert ours == theirs == Ours(**named) == Ours._make(theirs)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours._asdict() == theirs._asdict()
    assert (ours.first, ours.second, ours.third) == tuple(theirs)
    assert hash(ours) == hash(theirs)
    assert ours.doubled() == 2 * values[0]
    assert pickle.loads(pickle.dumps(ours)) == ours and type(pickle.loads(pickle.dumps(ours))) is Ours


@given(VALUES)
def test_replace_changes_what_is_named(values: tuple[typing.Any, ...]) -> None:
    ours = Ours(1)._replace(first=values[0], third=values[2])
    assert ours == Theirs(1)._replace(first=values[0], third=values[2]) and type(ours) is Ours


def test_its_class_tells_what_a_named_tuples_class_tells() -> None:
    for name in ("_fields", "_field_defaults", "__match_args__", "__slots__", "__module__"):
        assert getattr(Ours, name) == getattr(Theirs, name)
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)
    assert not hasattr(Ours(1), "__dict__")
    with pytest.raises(AttributeError):
        Ours(1).first = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, "", (), 4), {}), ((1,), {"first": 2}), ((1,), {"fourth": 2})]
)
def test_wrong_values_are_refused(values: tuple[typing.Any, ...], named: dict[str, typing.Any]) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            kind(*values, **named)
    with pytest.raises(TypeError):
        Ours._make((1, 2))
    with pytest.raises(ValueError, match="fourth"):
        Ours(1)._replace(fourth=2)  # type: ignore[call-arg]


def test_a_default_before_a_field_without_one_is_refused() -> None:
    namespace = {"__annotations__": {"a": int, "b": int}, "a": 1, "__module__": __name__}
    with pytest.raises(TypeError, match="without a default"):
        type(light.NamedTuple)("Wrong", (light.NamedTuple,), namespace)


def test_msgspec_reads_and_writes_it_as_a_named_tuple() -> None:
    assert msgspec.json.encode(Ours(1, "x", (2,))) == msgspec.json.encode(Theirs(1, "x", (2,)))
    assert msgspec.json.decode(b'[1, "x", [2]]', type=Ours) == Ours(1, "x", (2,))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'["no"]', type=Ours)


def test_suppress_swallows_what_it_names_and_nothing_else() -> None:
    with light.suppress(OSError, KeyError):
        raise FileNotFoundError
    with pytest.raises(ValueError, match="seen"), light.suppress(OSError):
        raise ValueError("seen")


def test_a_stack_undoes_everything_in_reverse_order_and_tells_the_first_error() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("first")

    @contextlib.contextmanager
    def entered() -> typing.Iterator[str]:
        yield "value"
        done.append("left")

    stack = light.ExitStack()
    stack.callback(done.append, "last")
    assert stack.enter_context(entered()) == "value"
    stack.callback(fail)
    with pytest.raises(ValueError, match="first"):
        stack.close()
    assert done == ["left", "last"]
    stack.close()
