"""Checks of arguments, shared by all declarations: the same limits as the Rust model's.

Each returns the value it was given, typed, or raises a `DeclarationError`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Type, TypeVar, cast

from ._errors import DeclarationError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

# `is_name` of protocol/src/ids.rs.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}", re.ASCII)
NAME_RULE = "1-63 letters, digits, '_' and '-', starting with a letter"

# `GroupSpec::validate` of protocol/src/model.rs: limits of AWS AutoScaling and instance metadata.
USER_TAGS_MAX = 40
_TAG_KEY = re.compile(r"[A-Za-z0-9+\-=.,_:@]{1,128}", re.ASCII)
_RESERVED_TAG_PREFIXES = ("outstation:", "aws:")
TAG_VALUE_CHARS_MAX = 256
OWNER_CHARS_MAX = 256
DESCRIPTION_CHARS_MAX = 1024

# Options travel to the instance in one tag value: `workers=2,...`.
_OPTION_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_OPTION_VALUE = re.compile(r"[^,=\x00-\x1f]*")
OPTIONS_CHARS_MAX = 256
# What a transform server takes: transform-server/src/options.rs.
_OPTIONS = {"workers": re.compile(r"[0-9]{1,3}", re.ASCII)}
WORKERS_MAX = 512


def strict(what: str) -> Callable[[F], F]:
    """Turns Python's own complaints about arguments into ones that say what to do."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        names = [name for name in signature.parameters if name != "self"]
        required = [
            name
            for name in names
            if signature.parameters[name].default is inspect.Parameter.empty
        ]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise _bad_call(what, names, required, kwargs, str(error)) from None
            return function(*args, **kwargs)

        return cast(F, checked)

    return decorate


def _bad_call(
    what: str, names: List[str], required: List[str], kwargs: Dict[str, Any], python_says: str
) -> DeclarationError:
    takes = f"{what} takes {', '.join(names)}"
    for given in kwargs:
        if given not in names:
            close = difflib.get_close_matches(given, names, n=1)
            hint = f"did you mean {close[0]!r}? {takes}" if close else takes
            return DeclarationError(f"{what} has no argument {given!r}", hint=hint)
    if "positional" in python_says and "too many" in python_says:
        return DeclarationError(
            f"{what} takes its arguments by name", hint=f"write {what}({names[0]}=…); {takes}"
        )
    missing = [name for name in required if name not in kwargs]
    return DeclarationError(
        f"{what}: {python_says}", hint=f"add {', '.join(f'{name}=…' for name in missing)}"
    )


def shown(value: Any) -> str:
    """A value as part of a message: its type, and some of it."""
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:79] + '…'}"


def instance(what: str, field: str, value: Any, kind: Type[T], words: str) -> T:
    """`words` says what is wanted, with an example."""
    if isinstance(value, bool) and kind is int or not isinstance(value, kind):
        raise DeclarationError(
            f"{what}: {field} must be {words}, not {shown(value)}", hint=f"give {field} {words}"
        )
    return value


def listing(what: str, field: str, value: Any, kind: Type[T], words: str) -> Tuple[T, ...]:
    if not isinstance(value, (list, tuple)):
        raise DeclarationError(
            f"{what}: {field} must be a list of {words}, not {shown(value)}",
            hint=f"write {field}=[…]",
        )
    if not value:
        raise DeclarationError(
            f"{what}: {field} is empty", hint=f"list at least one of {words} in {field}"
        )
    for index, item in enumerate(value):
        if not isinstance(item, kind):
            raise DeclarationError(
                f"{what}: {field}[{index}] must be one of {words}, not {shown(item)}",
                hint=f"{field} takes a list of {words}",
            )
    return tuple(value)


def name(what: str, value: Any, field: str = "name") -> str:
    text = instance(what, field, value, str, "a string")
    if not _NAME.fullmatch(text):
        raise DeclarationError(
            f"{what}: {field} {text[:80]!r} is not valid", hint=f"use {NAME_RULE}"
        )
    return text


def distinct(what: str, field: str, names: Sequence[str]) -> None:
    seen = set()
    for each in names:
        if each in seen:
            raise DeclarationError(
                f"{what}: {each!r} appears twice in {field}", hint="remove or rename one of them"
            )
        seen.add(each)


def text(what: str, field: str, value: Any, chars_max: int) -> Optional[str]:
    if value is None:
        return None
    checked = instance(what, field, value, str, "a string")
    if len(checked) > chars_max:
        raise DeclarationError(
            f"{what}: the {field} has {len(checked)} characters, more than {chars_max}",
            hint=f"shorten the {field}",
        )
    return checked


def tags(what: str, value: Any) -> Dict[str, str]:
    if value is None:
        return {}
    given = instance(what, "tags", value, dict, 'a dict of strings, as {"team": "ml"}')
    if len(given) > USER_TAGS_MAX:
        raise DeclarationError(
            f"{what}: {len(given)} tags are more than {USER_TAGS_MAX}",
            hint="AWS allows 50 tags on a group, and Outstation keeps ten of them for itself",
        )
    for key, item in given.items():
        if (
            not isinstance(key, str)
            or not _TAG_KEY.fullmatch(key)
            or key.startswith(_RESERVED_TAG_PREFIXES)
        ):
            raise DeclarationError(
                f"{what}: tag key {key!r} is not valid",
                hint="use 1-128 letters, digits and '+-=.,_:@' (instance metadata shows no others), "
                "not starting with 'outstation:' or 'aws:'",
            )
        if not isinstance(item, str):
            raise DeclarationError(
                f"{what}: the value of tag {key!r} must be a string, not {shown(item)}",
                hint=f'write "{item}" in quotes',
            )
        if len(item) > TAG_VALUE_CHARS_MAX:
            raise DeclarationError(
                f"{what}: the value of tag {key!r} has {len(item)} characters, "
                f"more than {TAG_VALUE_CHARS_MAX}",
                hint="shorten it",
            )
    return dict(sorted(given.items()))


def options(what: str, value: Any) -> Dict[str, str]:
    if value is None:
        return {}
    given = instance(what, "options", value, dict, 'a dict of strings, as {"workers": "2"}')
    for key, item in given.items():
        if not isinstance(key, str) or not _OPTION_KEY.fullmatch(key):
            raise DeclarationError(
                f"{what}: option {key!r} is not valid",
                hint="option names are lower-case letters, digits and '_', starting with a letter",
            )
        if not isinstance(item, str) or not _OPTION_VALUE.fullmatch(item):
            raise DeclarationError(
                f"{what}: the value of option {key!r} must be a string without ',' and '=', "
                f"not {shown(item)}",
                hint=f'write options={{"{key}": "…"}}',
            )
        # An option that no server reads would be ignored without a word.
        if key not in _OPTIONS:
            raise DeclarationError(
                f"{what}: there is no option {key!r}", hint=f"options are {', '.join(_OPTIONS)}"
            )
        if not _OPTIONS[key].fullmatch(item) or not 1 <= int(item) <= WORKERS_MAX:
            raise DeclarationError(
                f"{what}: option {key!r} must be a whole number, not {shown(item)}",
                hint=f'give from "1" to "{WORKERS_MAX}" Python processes on each node',
            )
    if len(",".join(f"{key}={item}" for key, item in given.items())) > OPTIONS_CHARS_MAX:
        raise DeclarationError(
            f"{what}: the options are longer than {OPTIONS_CHARS_MAX} characters together",
            hint="they travel to the instances in one tag; leave out what is a default",
        )
    return dict(sorted(given.items()))
