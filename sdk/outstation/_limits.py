"""What one view may have of a transform server that it shares with others."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional

from . import _checks
from ._errors import DeclarationError

PRIORITIES = ("low", "normal", "high")
# More than any server runs or keeps waiting at once.
LIMIT_MAX = 1_000_000


class Limits:
    """Bounds and priority of a view on each transform server.

    concurrency: how many of its calls run at once; others wait. waiting: how many wait; others are
    refused at once, and may go to another server. priority: its share of the workers' time while others
    wait as well: "high" gets four times "normal", and that four times "low"; nobody starves.
    """

    @_checks.strict("Limits")
    def __init__(
        self,
        *,
        concurrency: Optional[int] = None,
        waiting: Optional[int] = None,
        priority: str = "normal",
    ) -> None:
        self.concurrency = _bound("concurrency", concurrency)
        self.waiting = _bound("waiting", waiting)
        if priority not in PRIORITIES:
            raise DeclarationError(
                f"Limits: priority must be one of {', '.join(PRIORITIES)}, not {_checks.shown(priority)}",
                hint='write priority="high", or leave it out',
            )
        self.priority = priority

    def manifest(self) -> Dict[str, Any]:
        return {"concurrency": self.concurrency, "waiting": self.waiting, "priority": self.priority}

    def __repr__(self) -> str:
        return (
            f"Limits(concurrency={self.concurrency}, waiting={self.waiting}, "
            f"priority={self.priority!r})"
        )


def _bound(name: str, value: Any) -> Optional[int]:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LIMIT_MAX:
        raise DeclarationError(
            f"Limits: {name} must be a whole number from 1 to {LIMIT_MAX}, not {_checks.shown(value)}",
            hint=f"write {name}=8, or leave it out for no bound",
        )
    return value


def strictest(limits: Iterable[Limits]) -> Limits:
    """What a service has, whose calls run all of its views: each bound of any, the highest priority."""
    found = Limits()
    for index, each in enumerate(limits):
        found.concurrency = _least(found.concurrency, each.concurrency)
        found.waiting = _least(found.waiting, each.waiting)
        if index == 0 or PRIORITIES.index(each.priority) > PRIORITIES.index(found.priority):
            found.priority = each.priority
    return found


def _least(one: Optional[int], other: Optional[int]) -> Optional[int]:
    return other if one is None else one if other is None else min(one, other)
