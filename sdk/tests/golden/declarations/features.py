"""One of everything; its manifest is `../manifest.json`."""

from outstation import (
    Attribute,
    Environment,
    FeatureService,
    ProvisionedScalingConfig,
    RequestSource,
    Secret,
    TransformServerGroup,
    realtime_feature_view,
)
from outstation.types import (
    Array,
    Bool,
    Bytes,
    Field,
    Float64,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)

environment = Environment(name="flights", requirements="./requirements.txt")
Environment(name="empty", requirements="requirements.txt")

group = TransformServerGroup(
    name="delay_tsg",
    environment=environment,
    scaling_config=ProvisionedScalingConfig(desired_nodes=3),
    owner="ops",
    description="Delays, für alle",
    tags={"team": "ml", "cost:centre": "7"},
    prevent_destroy=True,
    options={"workers": "2"},
)

departure = RequestSource(
    schema=[
        Field("z_last", Float64),
        Field("carrier", String),
        Field("cancelled", Bool),
        Field("raw", Bytes),
        Field("at", Timestamp),
    ]
)
history = RequestSource(
    schema=[
        Field("delays", Array(Float64)),
        Field("by_gate", Map(String, Array(Int64))),
        Field("position", Struct([Field("lat", Float64), Field("lon", Float64)])),
    ]
)


@realtime_feature_view(
    sources=[departure, history],
    mode="pandas",
    features=[Attribute("mean", Float64), Attribute("delays", Array(Float64))],
    owner="ml",
    description="Of the last flights",
    tags={"stage": "beta"},
    secrets=[Secret("weather_key")],
)
def recent(departure, history, context):
    return {"mean": 0.0, "delays": []}


@realtime_feature_view(
    name="a-first", sources=[departure], mode="python", features=[Attribute("y", Int64)]
)
def other(departure):
    return {"y": None}


FeatureService(name="delay", features=[recent, other], transform_server_group=group, owner="ml")
