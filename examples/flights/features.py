"""Features of a model that predicts departure delays, computed when a departure is looked at.

The rows are departures from New York (see departures.py). A field may be null: a cancelled flight
has no air time. What cannot be computed then is null as well, never an error.
"""

import functools
import math
from datetime import date, datetime, timedelta
from typing import Any, Dict, List, Optional
from zoneinfo import ZoneInfo

from outstation import (
    Attribute,
    Environment,
    FeatureService,
    ProvisionedScalingConfig,
    RequestSource,
    TransformServerGroup,
    realtime_feature_view,
)
from outstation.types import Bool, Field, Float64, Int64, String, Timestamp

Environment(name="flights", requirements="requirements.txt")  # what

TransformServerGroup(  # which instance of it
    name="delay_tsg",
    environment="flights",
    owner="ops",
    description="Features of the departure delay model",
    scaling_config=ProvisionedScalingConfig(desired_nodes=3),
)

departure = RequestSource(
    schema=[
        Field("distance", Float64),  # miles
        Field("air_time", Float64),  # minutes; null if the flight was cancelled or diverted
        Field("carrier", String),
    ]
)
schedule = RequestSource(
    schema=[Field("scheduled_departure", Timestamp), Field("scheduled_arrival", Timestamp)]
)

NEW_YORK = ZoneInfo("America/New_York")
# Carriers that fly for others on short legs; theirs are the flights that wait first.
REGIONAL = frozenset({"9E", "EV", "MQ", "OO", "YV"})


@realtime_feature_view(
    sources=[departure, schedule],
    mode="python",
    features=[
        Attribute("speed_mph", Float64),
        Attribute("planned_speed_mph", Float64),
        Attribute("buffer_minutes", Float64),
        Attribute("regional", Bool),
    ],
    description="How fast, how fast by the timetable, and how much of the timetable is reserve",
)
def speed(departure: Dict[str, Any], schedule: Dict[str, Any]) -> Dict[str, Any]:
    distance, air_time = departure["distance"], departure["air_time"]
    planned = _minutes(schedule["scheduled_departure"], schedule["scheduled_arrival"])
    carrier = departure["carrier"]
    return {
        "speed_mph": _mph(distance, air_time),
        "planned_speed_mph": _mph(distance, planned),
        "buffer_minutes": None if planned is None or air_time is None else planned - air_time,
        "regional": None if carrier is None else carrier in REGIONAL,
    }


@realtime_feature_view(
    sources=[schedule],
    mode="python",
    features=[
        Attribute("hour_sin", Float64),
        Attribute("hour_cos", Float64),
        Attribute("weekday", Int64),
        Attribute("rush_hour", Bool),
    ],
    description="The time of day as a point on a circle, and whether the airports are at their busiest",
)
def time_of_day(schedule: Dict[str, Any]) -> Dict[str, Any]:
    at: Optional[datetime] = schedule["scheduled_departure"]
    if at is None:
        return dict.fromkeys(("hour_sin", "hour_cos", "weekday", "rush_hour"))
    local = at.astimezone(NEW_YORK)
    angle = (local.hour * 60 + local.minute) / 1440 * math.tau
    weekday = local.weekday()  # Monday is 0
    return {
        "hour_sin": math.sin(angle),
        "hour_cos": math.cos(angle),
        "weekday": weekday,
        "rush_hour": weekday < 5 and (6 <= local.hour < 9 or 16 <= local.hour < 20),
    }


@realtime_feature_view(
    sources=[schedule],
    mode="python",
    features=[
        Attribute("days_since", Int64),
        Attribute("days_until", Int64),
        Attribute("peak", Bool),
    ],
    description="Days from the US holiday before and to the next one; 0 on the day itself",
)
def holiday(schedule: Dict[str, Any]) -> Dict[str, Any]:
    at: Optional[datetime] = schedule["scheduled_departure"]
    if at is None:
        return {"days_since": None, "days_until": None, "peak": None}
    day = at.astimezone(NEW_YORK).date()
    since, until = _around(day)
    return {"days_since": since, "days_until": until, "peak": min(since, until) <= 1}


FeatureService(
    name="delay", features=[speed, time_of_day, holiday], transform_server_group="delay_tsg"
)


def _mph(miles: Optional[float], minutes: Optional[float]) -> Optional[float]:
    return miles / (minutes / 60) if miles is not None and minutes else None


def _minutes(start: Optional[datetime], end: Optional[datetime]) -> Optional[float]:
    return (end - start) / timedelta(minutes=1) if start is not None and end is not None else None


@functools.lru_cache(maxsize=1024)  # days; a year of flights, and some to come
def _around(day: date) -> "tuple[int, int]":
    days = [each for year in range(day.year - 1, day.year + 2) for each in _us_holidays(year)]
    return (
        min((day - each).days for each in days if each <= day),
        min((each - day).days for each in days if each >= day),
    )


@functools.lru_cache(maxsize=16)
def _us_holidays(year: int) -> List[date]:
    # Of the environment, so imported where it is used: plans are made where it is not installed.
    import holidays

    return sorted(holidays.country_holidays("US", years=year))
