"""What a function may know about the call: when it came, whose trace it is of, and secrets.

A function gets it by declaring a last parameter named `context`. Secrets are named by the view and
read from files, one for each name, in a folder that the environment variable says: neither an order
nor a bundle ever holds one.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from . import _checks
from ._codec import EPOCH

#: The name of the parameter.
PARAMETER = "context"
SECRETS_DIR_VARIABLE = "OUTSTATION_SECRETS_DIR"
# As much as a certificate with its chain and key; more is not a secret but data.
SECRET_BYTES_MAX = 64 * 1024
# Shorter ones would take half of every message with them.
_REDACTED_CHARS_MIN = 4

_secrets_dir: Optional[str] = None


def use_secrets_dir(folder: Optional[str]) -> None:
    """For this process; `None`: what the environment variable says."""
    global _secrets_dir
    _secrets_dir = folder


class Secret:
    """The name of a secret that a view may read. Its value is in a file of that name on the node."""

    @_checks.strict("Secret")
    def __init__(self, name: str) -> None:
        self.name = _checks.name("Secret", name)

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


class SecretError(LookupError):
    """A secret that cannot be had: what is missing, and what to do about it."""


class Secrets(Mapping[str, str]):
    """The view's secrets, each read when first asked for, and then kept for the call.

    Shows names, never values.
    """

    __slots__ = ("_declared", "_read", "_view")

    def __init__(
        self, view: str, declared: Tuple[str, ...], values: Optional[Mapping[str, str]] = None
    ) -> None:
        self._view = view
        self._declared = declared
        self._read: Dict[str, str] = dict(values or {})

    def __getitem__(self, name: str) -> str:
        value = self._read.get(name)
        if value is None:
            value = self._read[name] = self._from_file(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._declared

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._declared)})"

    def _from_file(self, name: str) -> str:
        if name not in self._declared:
            there_is = ", ".join(self._declared) or "none"
            raise SecretError(
                f"secret {name!r} is not declared by feature view {self._view!r} (declared: {there_is}); "
                f"add Secret({name!r}) to the secrets of its @realtime_feature_view"
            )
        folder = _secrets_dir or os.environ.get(SECRETS_DIR_VARIABLE)
        if not folder:
            raise SecretError(
                f"secret {name!r} cannot be read: no folder of secrets is set; "
                f"set {SECRETS_DIR_VARIABLE} to a folder with a file {name!r}"
            )
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                raw = file.read(SECRET_BYTES_MAX + 1)
        except FileNotFoundError:
            raise SecretError(
                f"secret {name!r} is not there: put its value into the file {path}"
            ) from None
        except OSError as error:
            raise SecretError(
                f"secret {name!r} cannot be read from {path}: {error.strerror}; "
                "correct the file or its permissions"
            ) from None
        if len(raw) > SECRET_BYTES_MAX:
            raise SecretError(f"secret {name!r} is larger than {SECRET_BYTES_MAX} bytes: {path}")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise SecretError(
                f"secret {name!r} is not UTF-8 text; write {path} as text, binary values as base64"
            ) from None
        # Editors and `echo` end a file with a line end that is not of the secret.
        return _without_line_end(text)

    def redact(self, text: str) -> str:
        """`text` without the values that were read: an exception may quote them."""
        for value in self._read.values():
            if len(value) >= _REDACTED_CHARS_MIN:
                text = text.replace(value, "***")
        return text


class RealtimeContext:
    """What a function with a parameter `context` gets. In tests one can be made by hand:

    `speed.run({…}, context=RealtimeContext(secrets={"api_key": "for tests"}))`
    """

    __slots__ = ("_micros", "_secrets", "_timestamp", "_traceparent")

    def __init__(
        self,
        *,
        request_timestamp: Optional[datetime] = None,
        secrets: Optional[Mapping[str, str]] = None,
        traceparent: Optional[str] = None,
    ) -> None:
        if request_timestamp is None:
            request_timestamp = datetime.now(timezone.utc)
        if not isinstance(request_timestamp, datetime) or request_timestamp.utcoffset() is None:
            raise TypeError(
                "RealtimeContext: request_timestamp must be a datetime with a timezone, as "
                f"datetime(…, tzinfo=timezone.utc), not {_checks.shown(request_timestamp)}"
            )
        given = {} if secrets is None else dict(secrets)
        self._timestamp: Optional[datetime] = request_timestamp.astimezone(timezone.utc)
        self._micros = 0
        self._secrets = Secrets("", tuple(given), given)
        self._traceparent = traceparent

    @classmethod
    def of_call(
        cls, view: str, secrets: Tuple[str, ...], request_time_us: int, traceparent: Optional[str]
    ) -> "RealtimeContext":
        """For a server: `request_time_us` is Unix microseconds."""
        context = cls.__new__(cls)
        context._timestamp = None
        context._micros = request_time_us
        context._secrets = Secrets(view, secrets)
        context._traceparent = traceparent or None
        return context

    @property
    def request_timestamp(self) -> datetime:
        """When the request came, in UTC, to the microsecond; the same for all its rows."""
        if self._timestamp is None:
            self._timestamp = EPOCH + timedelta(microseconds=self._micros)
        return self._timestamp

    @property
    def secrets(self) -> Secrets:
        """`context.secrets["name"]`, for what the view declares in `secrets=[Secret("name")]`."""
        return self._secrets

    @property
    def traceparent(self) -> Optional[str]:
        """The caller's trace, as W3C writes it; `None` if it sent none."""
        return self._traceparent

    def __repr__(self) -> str:
        return f"RealtimeContext(request_timestamp={self.request_timestamp.isoformat()!r}, {self._secrets})"


def _without_line_end(text: str) -> str:
    if not text.endswith("\n"):
        return text
    return text[:-2] if text.endswith("\r\n") else text[:-1]


def redacted(context: Any, text: str) -> str:
    """`context` may be what a test made up."""
    return context.secrets.redact(text) if isinstance(context, RealtimeContext) else text
