"""Frozen dataclasses as JSON and back, strictly by their annotations.

Fields that have their default value are left out, so that what is remembered of somebody who is
well stays small. Reading refuses with ``ValueError`` (or ``ArithmeticError`` for a number) whatever
writing would not make: another type, an unknown field, a time without zone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Final, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

_Shape = TypeVar("_Shape")
_MICROSECOND: Final = timedelta(microseconds=1)


def written(value: object, *, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as JSON has them.

    Args:
        value: a dataclass.
        leave_out: fields of it that somebody else writes.
    """
    return {
        one.name: _plain(getattr(value, one.name))
        for one in fields(value)  # type: ignore[arg-type]  # a dataclass, as documented
        if one.name not in leave_out and getattr(value, one.name) != _default(one)
    }


def read(shape: type[_Shape], raw: object, *, leave_out: Collection[str] = ()) -> _Shape:
    """Read what ``written`` wrote of a dataclass of this type.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(raw, dict):
        raise ValueError  # noqa: TRY004  # all that is wrong is one error
    hints = {name: one for name, one in _hints(shape).items() if name not in leave_out}  # type: ignore[arg-type]  # a type can be hashed
    if not raw.keys() <= hints.keys():
        raise ValueError
    needed = {one.name for one in fields(shape) if _default(one) is MISSING}  # type: ignore[arg-type]
    if not needed <= raw.keys():
        raise ValueError
    return shape(**{name: _value(hints[name], each) for name, each in raw.items()})


@lru_cache(maxsize=64)
def _hints(shape: type) -> Mapping[str, Any]:
    return get_type_hints(shape)


def _default(one: Field[Any]) -> object:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _plain(value: object) -> Any:  # noqa: PLR0911  # one for each type
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if is_dataclass(value):
        return written(value)
    return value


def _value(shape: Any, raw: object) -> Any:
    origin = get_origin(shape)
    if origin in {Union, UnionType}:
        (inner,) = (one for one in get_args(shape) if one is not NoneType)
        return None if raw is None else _value(inner, raw)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ValueError
        return tuple(_value(get_args(shape)[0], one) for one in raw)
    if origin is not None:  # all that is left is a mapping
        if not isinstance(raw, dict):
            raise ValueError
        of_key, of_value = get_args(shape)
        return {_value(of_key, key): _value(of_value, one) for key, one in raw.items()}
    if is_dataclass(shape):
        return read(shape, raw)  # type: ignore[arg-type]  # a type of a dataclass
    return _single(shape.__supertype__ if isinstance(shape, NewType) else shape, raw)


def _single(shape: Any, raw: object) -> Any:
    if shape in {int, bool, timedelta}:
        if type(raw) is not (bool if shape is bool else int):
            raise ValueError
        return raw * _MICROSECOND if shape is timedelta else raw
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004  # all that is wrong is one error
    if shape is datetime:
        time = datetime.fromisoformat(raw)
        if time.tzinfo is None:
            raise ValueError
        return time.astimezone(UTC)
    if shape is Decimal:
        value = Decimal(raw)
        if not value.is_finite():
            raise ValueError
        return value
    if issubclass(shape, IntEnum):
        if raw not in shape.__members__:
            raise ValueError
        return shape[raw]
    return shape(raw) if issubclass(shape, Enum) else raw
