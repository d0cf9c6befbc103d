"""Computes the features of features.py offline, from the whole data frame, for a sample of departures.

    python offline.py [--sample N]     # prints {"index": …, "features": {…}}, one per line

Written a second time on purpose, with pandas and numpy, from the timetable's local times instead of
the rows' timestamps, and with pandas' own holiday calendar: what the servers answer for row `index`
of departures.py must equal it (floats to 1e-9).
"""

import argparse
import json
import os
from typing import Any

import numpy as np
import pandas as pd
from departures import CARIBBEAN, data_dir
from pandas.tseries.holiday import USFederalHolidayCalendar

CANCELLED = 8  # of the sample, at least


def main() -> None:
    parser = argparse.ArgumentParser(description="Computes a sample of the features with pandas.")
    parser.add_argument("--sample", type=int, default=200, help="how many departures")
    options = parser.parse_args()
    flights = pd.read_csv(os.path.join(data_dir(), "flights.csv.zip"))
    airports = pd.read_csv(os.path.join(data_dir(), "airports.csv"))
    sample = choose(flights, options.sample)
    table = features(sample, airports)
    for index, row in table.iterrows():
        values = {name: plain(value) for name, value in row.items()}
        print(json.dumps({"index": int(index), "features": values}))


def choose(flights: pd.DataFrame, size: int) -> pd.DataFrame:
    """Evenly over the year, and some of the cancelled; the same at every run."""
    even = np.linspace(0, len(flights) - 1, max(size - CANCELLED, 1)).astype(int)
    cancelled = flights.index[flights["air_time"].isna()][:: 9430 // CANCELLED][:CANCELLED]
    return flights.loc[sorted({*even, *cancelled})]


def features(flights: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    day = pd.to_datetime(flights[["year", "month", "day"]])
    local = day + pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min")
    planned = block_minutes(flights, airports, day, local)
    angle = 2 * np.pi * (flights["hour"] + flights["minute"] / 60) / 24
    out = pd.DataFrame(index=flights.index)
    out["speed.speed_mph"] = flights["distance"] / flights["air_time"] * 60
    out["speed.planned_speed_mph"] = flights["distance"] / planned * 60
    out["speed.buffer_minutes"] = planned - flights["air_time"]
    out["speed.regional"] = flights["carrier"].isin(["9E", "EV", "MQ", "OO", "YV"])
    out["time_of_day.hour_sin"] = np.sin(angle)
    out["time_of_day.hour_cos"] = np.cos(angle)
    out["time_of_day.weekday"] = local.dt.day_of_week
    out["time_of_day.rush_hour"] = local.dt.day_of_week.lt(5) & flights["hour"].isin(
        [6, 7, 8, 16, 17, 18, 19]
    )
    days = USFederalHolidayCalendar().holidays("2012-01-01", "2014-12-31").to_numpy("datetime64[D]")
    today = day.to_numpy("datetime64[D]")
    since = today - days[np.searchsorted(days, today, side="right") - 1]
    until = days[np.searchsorted(days, today, side="left")] - today
    out["holiday.days_since"] = since.astype(int)
    out["holiday.days_until"] = until.astype(int)
    out["holiday.peak"] = np.minimum(since, until).astype(int) <= 1
    return out


def block_minutes(
    flights: pd.DataFrame, airports: pd.DataFrame, day: pd.Series, local: pd.Series
) -> pd.Series:
    """Minutes from scheduled departure to scheduled arrival, which is in the destination's time."""
    zones = {**airports.set_index("faa")["tzone"].to_dict(), **CARIBBEAN}
    departs = local.dt.tz_localize("America/New_York").dt.tz_convert("UTC")
    clock = pd.to_timedelta(
        flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100, unit="min"
    )
    parts = []
    for zone, there in (day + clock).groupby(flights["dest"].map(zones)):
        first = there.dt.tz_localize(zone).dt.tz_convert("UTC")
        next_day = (there + pd.Timedelta(days=1)).dt.tz_localize(zone).dt.tz_convert("UTC")
        parts.append(first.where(first > departs[first.index], next_day))
    arrives = pd.concat(parts).reindex(flights.index)
    return (arrives - departs) / pd.Timedelta(minutes=1)


def plain(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    return None if pd.isna(value) else float(value)


if __name__ == "__main__":
    main()
