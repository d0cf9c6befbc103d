"""Good declarations, and functions that are not."""

import os

from outstation import (
    Attribute,
    Environment,
    FeatureService,
    ProvisionedScalingConfig,
    RequestSource,
    TransformServerGroup,
    realtime_feature_view,
)
from outstation.types import Field, Float64, String

Environment(name="plain", requirements="requirements.txt")
TransformServerGroup(
    name="delay_tsg",
    environment="plain",
    scaling_config=ProvisionedScalingConfig(desired_nodes=2),
)

departure = RequestSource(schema=[Field("distance", Float64), Field("air_time", Float64)])


def view(feature):
    return realtime_feature_view(sources=[departure], mode="python", features=[feature])


@view(Attribute("mph", Float64))
def speed(departure):
    return {"mph": departure["distance"] / departure["air_time"]}


@view(Attribute("mph", Float64))
def raises(departure):
    raise ValueError("no such airport")


@view(Attribute("mph", Float64))
def another_type(departure):
    return {"mph": "fast"}


@view(Attribute("mph", Float64))
def nothing(departure):
    return None


@view(Attribute("mph", Float64))
def another_name(departure):
    return {"kmh": 1.0}


@view(Attribute("mph", Float64))
def recurses(departure):
    return recurses.function(departure)


@view(Attribute("mph", Float64))
def exits(departure):
    raise SystemExit(0)


@view(Attribute("mph", Float64))
def loops(departure):
    while True:
        pass


@view(Attribute("mph", Float64))
def dies(departure):
    os._exit(3)


@view(Attribute("text", String))
def floods(departure):
    return {"text": "x" * (65 << 20)}


FeatureService(name="delay", features=[speed], transform_server_group="delay_tsg")
