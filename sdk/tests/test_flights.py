"""The example: it declares what it says, and computes known values, nulls included."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_SECS, child_env

from outstation._declarations import collecting

FLIGHTS = Path(__file__).resolve().parents[2] / "examples" / "flights"
UTC = timezone.utc


@pytest.fixture(scope="module")
def features() -> Any:
    sys.path.insert(0, str(FLIGHTS))
    try:
        with collecting():
            return importlib.import_module("features")
    finally:
        sys.path.remove(str(FLIGHTS))


def test_it_declares_a_group_of_three_and_a_service() -> None:
    # -S: without site-packages, as on a machine where the environment is not installed.
    command = [sys.executable, "-S", "-m", "outstation.declare", str(FLIGHTS)]
    done = subprocess.run(
        command, env=child_env(), capture_output=True, text=True, timeout=PATIENCE_SECS, cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads(done.stdout)
    (group,) = manifest["groups"]
    assert (group["name"], group["environment"], group["scaling"]["desired_nodes"]) == ("delay_tsg", "flights", 3)
    (service,) = manifest["feature_services"]
    assert service["features"] == ["speed", "time_of_day", "holiday"]
    assert service["transform_server_group"] == "delay_tsg"


def test_the_first_departure_of_the_year(features: Any) -> None:
    departure = {"distance": 1400.0, "air_time": 227.0, "carrier": "UA"}
    schedule = {
        "scheduled_departure": datetime(2013, 1, 1, 10, 15, tzinfo=UTC),
        "scheduled_arrival": datetime(2013, 1, 1, 14, 19, tzinfo=UTC),
    }
    speed = features.speed.run(departure=departure, schedule=schedule)
    assert speed == {
        "speed_mph": pytest.approx(1400 / 227 * 60),
        "planned_speed_mph": pytest.approx(1400 / 244 * 60),
        "buffer_minutes": 17.0,
        "regional": False,
    }
    angle = (5 + 15 / 60) / 24 * 2 * math.pi  # 05:15 in New York
    assert features.time_of_day.run(schedule) == {
        "hour_sin": pytest.approx(math.sin(angle)),
        "hour_cos": pytest.approx(math.cos(angle)),
        "weekday": 1,
        "rush_hour": False,
    }
    assert features.holiday.run(schedule) == {"days_since": 0, "days_until": 0, "peak": True}


def test_days_are_those_of_new_york(features: Any) -> None:
    for at, since, until, peak in [
        (datetime(2013, 11, 28, 4, 59, tzinfo=UTC), 16, 1, True),  # the evening before Thanksgiving
        (datetime(2013, 11, 28, 5, 0, tzinfo=UTC), 0, 0, True),
        (datetime(2013, 8, 1, 12, 0, tzinfo=UTC), 28, 32, False),
    ]:
        row = {"scheduled_departure": at, "scheduled_arrival": None}
        assert features.holiday.run(row) == {"days_since": since, "days_until": until, "peak": peak}


def test_nulls_are_nulls_and_zero_minutes_are_no_speed(features: Any) -> None:
    nothing = {"scheduled_departure": None, "scheduled_arrival": None}
    departure = {"distance": None, "air_time": None, "carrier": None}
    for result in (
        features.speed.run(departure, nothing),
        features.time_of_day.run(nothing),
        features.holiday.run(nothing),
    ):
        assert set(result.values()) == {None}
    departure = {"distance": 1400.0, "air_time": 0.0, "carrier": "EV"}
    assert features.speed.run(departure, nothing)["speed_mph"] is None
    assert features.speed.run(departure, nothing)["regional"] is True
