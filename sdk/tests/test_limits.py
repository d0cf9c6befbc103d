"""Bounds of a view: declared, checked, and told to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from conftest import HEAD, WorkerProcess

from outstation import DeclarationError, Limits, _codec
from outstation._limits import strictest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": True}, "not bool True"),
        ({"waiting": 2.5}, "waiting must be a whole number"),
        ({"waiting": -1}, "not int -1"),
        ({"priority": "urgent"}, "priority must be one of low, normal, high"),
    ],
)
def test_bounds_that_make_no_sense(arguments: Dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        Limits(**arguments)


def test_a_service_has_the_strictest_of_its_views() -> None:
    both = strictest([Limits(concurrency=3, priority="low"), Limits(concurrency=2, waiting=9)])
    assert both.manifest() == {"concurrency": 2, "waiting": 9, "priority": "normal"}
    assert strictest([Limits(priority="low")]).priority == "low"


def test_the_server_is_told(tmp_path: Path, worker: Callable[[Path], WorkerProcess]) -> None:
    (tmp_path / "features.py").write_text(
        HEAD
        + "from outstation import Limits\n"
        + '@realtime_feature_view(sources=[RequestSource(schema=[Field("x", Int64)])], mode="python", '
        + 'features=[Attribute("y", Int64)], limits=Limits(concurrency=2, waiting=7, priority="low"))\n'
        + "def f(source):\n    return {'y': source['x']}\n"
    )
    assert worker(tmp_path).ready == _codec.encode_targets(
        [_codec.Target("f", 1, ("f",), "", concurrency=2, waiting=7, priority=-1)]
    )
