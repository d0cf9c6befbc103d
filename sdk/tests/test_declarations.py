"""What declarations refuse, in which words and naming which line; and calling a view by hand."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import outstation
from outstation import (
    Attribute,
    AutoscalingConfig,
    CpuTarget,
    DeclarationError,
    Environment,
    FeatureService,
    MetricTarget,
    ProvisionedScalingConfig,
    RequestSource,
    RowError,
    TransformServerGroup,
    realtime_feature_view,
)
from outstation._declarations import collecting
from outstation.types import (
    Array,
    Bool,
    Bytes,
    DataType,
    Field,
    Float64,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)

THREE = ProvisionedScalingConfig(desired_nodes=3)
SOURCE = RequestSource(schema=[Field("distance", Float64)])


@pytest.fixture(autouse=True)
def registry() -> Any:
    with collecting() as declared:
        yield declared


def group(**more: Any) -> TransformServerGroup:
    return TransformServerGroup(**{"name": "g", "scaling_config": THREE, "environment": "e", **more})


def view(function: Any = None, **more: Any) -> Any:
    arguments = {"sources": [SOURCE], "mode": "python", "features": [Attribute("a", Float64)]}
    arguments.update({"name": "v", **more})
    return realtime_feature_view(**arguments)(function or (lambda row: {"a": 1.0}))


REFUSED = [
    # arguments
    (lambda: group(desired_nodes=3), "has no argument 'desired_nodes'", "takes name, scaling_config"),
    (lambda: group(scaling=THREE), "has no argument 'scaling'", "did you mean 'scaling_config'"),
    (lambda: TransformServerGroup("g"), "takes its arguments by name", "write TransformServerGroup(name=…)"),  # type: ignore
    (lambda: TransformServerGroup(name="g"), "missing a required argument: 'scaling_config'", "add scaling_config=…"),  # type: ignore
    (lambda: Field("f"), "missing a required argument: 'dtype'", "dtype=…"),  # type: ignore
    (lambda: group(scaling_config=3), "scaling_config must be a ProvisionedScalingConfig", "desired_nodes"),
    (lambda: group(prevent_destroy="yes"), "prevent_destroy must be True or False, not str 'yes'", "True or False"),
    (lambda: group(environment=3), "environment must be the name of one", 'environment="…"'),
    (lambda: ProvisionedScalingConfig(desired_nodes=-1), "must not be negative", "number of nodes"),
    (lambda: ProvisionedScalingConfig(desired_nodes=2**32), "above 4294967295", "number of nodes"),
    # autoscaling, as protocol/src/model.rs and target.rs have it
    (lambda: AutoscalingConfig(min_nodes=3, max_nodes=2), "min_nodes 3 is more than max_nodes 2", "at least as many"),
    (lambda: AutoscalingConfig(max_nodes=2), "missing", "add min_nodes=…"),  # type: ignore
    (lambda: AutoscalingConfig(min_nodes=0, max_nodes=2), "no CPU to measure", "min_nodes=1"),
    (lambda: AutoscalingConfig(min_nodes=1, max_nodes=2, target=60), "must be a CpuTarget or a MetricTarget, not int 60", "CpuTarget(60)"),  # type: ignore
    (lambda: AutoscalingConfig(min_nodes=1, max_nodes=2, cpu=60), "has no argument 'cpu'", "takes min_nodes, max_nodes, target"),  # type: ignore
    (lambda: CpuTarget(0), "a number from 0.000001", "percent=60"),
    (lambda: CpuTarget(101), "must not be above 100", "CpuTarget(60)"),
    (lambda: CpuTarget(True), "not bool True", ""),
    (lambda: CpuTarget(float("nan")), "not float nan", ""),
    (lambda: MetricTarget(namespace="Q", name="Depth", value=0.12345678901234567), "of at most 15 digits", ""),
    (lambda: MetricTarget(namespace="Q", name="Depth", value="1"), "not str '1'", "value=60"),  # type: ignore
    (lambda: MetricTarget(namespace="", name="Depth", value=1), "namespace '' is not 1 to 255", "as CloudWatch shows it"),
    (lambda: MetricTarget(namespace="Q", name="Länge", value=1), "printable ASCII", ""),
    (lambda: MetricTarget(namespace="Q", name="Depth", value=1, statistic="p99"), "one of Average, Minimum", 'statistic="Average"'),
    (lambda: MetricTarget(namespace="Q", name="Depth", value=1, dimensions={"q": 1}), "dimension 'q' must be a string", ""),  # type: ignore
    (lambda: MetricTarget(namespace="Q", name="Depth", value=1, dimensions={f"d{n}": "x" for n in range(31)}), "31 dimensions are more than 30", ""),
    (lambda: ProvisionedScalingConfig(desired_nodes=True), "must be a whole number, not bool True", ""),
    (lambda: ProvisionedScalingConfig(desired_nodes=3.0), "must be a whole number, not float 3.0", ""),  # type: ignore
    # names, as protocol/src/ids.rs has them
    (lambda: group(name="1st"), "name '1st' is not valid", "starting with a letter"),
    (lambda: group(name=""), "name '' is not valid", ""),
    (lambda: group(name="with space"), "is not valid", ""),
    (lambda: group(name="colon:name"), "is not valid", ""),
    (lambda: group(name="ünicode"), "is not valid", ""),
    (lambda: group(name="x" * 64), "is not valid", ""),
    (lambda: group(name="x\n"), "is not valid", ""),
    (lambda: group(name=None), "name must be a string, not NoneType None", ""),
    # tags and texts, as protocol/src/model.rs has them
    (lambda: group(tags={"a/b": "v"}), "tag key 'a/b' is not valid", "instance metadata"),
    (lambda: group(tags={"a b": "v"}), "tag key 'a b' is not valid", ""),
    (lambda: group(tags={"": "v"}), "tag key '' is not valid", ""),
    (lambda: group(tags={"outstation:group": "v"}), "is not valid", "not starting with"),
    (lambda: group(tags={"aws:x": "v"}), "is not valid", ""),
    (lambda: group(tags={"k": 1}), "the value of tag 'k' must be a string, not int 1", 'write "1"'),
    (lambda: group(tags={"k": "v" * 257}), "257 characters, more than 256", ""),
    (lambda: group(tags={f"k{i}": "v" for i in range(41)}), "41 tags are more than 40", ""),
    (lambda: group(tags=["a"]), "tags must be a dict of strings", ""),
    (lambda: group(owner="o" * 257), "the owner has 257 characters", "shorten"),
    (lambda: group(description="d" * 1025), "the description has 1025 characters", ""),
    (lambda: group(options={"workers": 2}), "option 'workers' must be a string", ""),
    (lambda: group(options={"workers": "1,2"}), "without ',' and '='", ""),
    (lambda: group(options={"Workers": "2"}), "option 'Workers' is not valid", ""),
    (lambda: group(options={"colour": "red"}), "there is no option 'colour'", "options are workers"),
    (lambda: group(options={"workers": "many"}), "must be a whole number, not str 'many'", '"1" to "512"'),
    (lambda: group(options={"workers": "0"}), "must be a whole number, not str '0'", '"1" to "512"'),
    (lambda: group(options={"workers": "513"}), "must be a whole number, not str '513'", '"1" to "512"'),
    (lambda: Environment(name="e", requirements=["holidays"]), "requirements must be a path", ""),  # type: ignore
    # types
    (lambda: Field("f", float), "dtype must be a type of outstation.types", "write Float64"),  # type: ignore
    (lambda: Field("f", Array), "must be a type", "write Array(…)"),  # type: ignore
    (lambda: Field("f", "float64"), "must be a type", "outstation.types has Array, Bool"),  # type: ignore
    (lambda: Float64(), "Float64 is a type already", "without parentheses"),
    (lambda: Map(Int64, String), "keys must be String, not Int64", "Map(String"),
    (lambda: Struct([]), "fields is empty", ""),
    (lambda: Struct([Field("a", Bool), Field("a", Bool)]), "'a' appears twice", ""),
    (lambda: nested(40), "nested more than 32 deep", ""),
    # sources, views, services
    (lambda: RequestSource(schema=[]), "schema is empty", ""),
    (lambda: RequestSource(schema=Field("f", Bool)), "schema must be a list of", "schema=[…]"),  # type: ignore
    (lambda: RequestSource(schema=[Float64]), "schema[0] must be one of Field", ""),  # type: ignore
    (lambda: RequestSource(schema=[Field("f", Bool), Field("f", Bool)]), "'f' appears twice", ""),
    (lambda: view(mode="spark"), "mode 'spark' is not known", 'mode="pandas"'),
    (lambda: view(lambda a, b: {}, mode="pandas"), "one DataFrame for each of its 1 source", "as many parameters"),
    (lambda: view(lambda context, a: {}), "one dict for each of its 1 source", "`context` as the last one"),
    (lambda: view(secrets=[outstation.Secret("k")]), "no parameter to read them through", "last parameter `context`"),
    (lambda: view(lambda a, context: {}, secrets=["k"]), "secrets[0] must be one of Secret", ""),
    (lambda: view(lambda a, context: {}, secrets=[outstation.Secret("k")] * 2), "'k' appears twice in secrets", ""),
    (lambda: outstation.Secret("../etc"), "Secret: name '../etc' is not valid", ""),
    (lambda: view(sources=[]), "sources is empty", ""),
    (lambda: view(features=[Field("a", Float64)]), "features[0] must be one of Attribute", ""),
    (lambda: view(lambda a, b: {}), "one dict for each of its 1 source", "as many parameters"),
    (lambda: view(lambda: {}), "one dict for each of its 1 source", ""),
    (lambda: view(generator, name="v"), "must return a dict", "plain `def`"),
    (lambda: view(dict, name="v"), "must decorate a function", ""),
    (lambda: view(name=None), "name '<lambda>' is not valid", ""),
    (lambda: view(lambda a, b: {}, sources=[SOURCE, RequestSource(schema=[Field("distance", String)])]), "'distance' is Float64 in one source", "two names"),
    (lambda: realtime_feature_view(lambda row: {}), "takes its arguments by name", ""),  # type: ignore
    (lambda: FeatureService(name="s", features=[lambda row: {}]), "features[0] must be one of functions decorated", ""),  # type: ignore
    (lambda: FeatureService(name="s", features=["v"]), "features[0] must be one of", ""),  # type: ignore
]  # fmt: skip


def generator(row: Any) -> Any:
    yield row


def nested(levels: int) -> DataType:
    dtype: DataType = Float64
    for _ in range(levels):
        dtype = Array(dtype)
    return dtype


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_a_wrong_declaration_says_what_and_where_and_what_to_do(index: int) -> None:
    declare, message, hint = REFUSED[index]
    with pytest.raises(DeclarationError) as caught:
        declare()
    error = caught.value
    assert message in error.message and hint in error.hint and error.hint
    assert error.where is not None and Path(error.where.file) == Path(__file__)
    assert re.match(r".*test_declarations\.py:\d+: ", error.one_line)
    assert str(error) == f"{error.one_line}\nhint: {error.hint}"


def test_what_is_right_is_taken(registry: Any) -> None:
    environment = Environment(name="e", requirements="requirements.txt")
    declared = group(
        name="x" * 63, environment=environment, tags={"b:c": "", "a": "ü" * 256}, options={"workers": "2"}
    )
    assert declared.environment == "e" and list(declared.tags) == ["a", "b:c"]
    first = view(name="A-1_b")
    service = FeatureService(name="s", features=[first], transform_server_group=declared)
    assert service.transform_server_group == "x" * 63
    assert registry == [environment, declared, first, service]
    assert group(scaling_config=ProvisionedScalingConfig(desired_nodes=0)).prevent_destroy is False


def test_autoscaling_says_bounds_and_target() -> None:
    plain = group(scaling_config=AutoscalingConfig(min_nodes=2, max_nodes=10)).scaling_config
    assert plain.manifest() == {
        "type": "autoscaling",
        "min_nodes": 2,
        "max_nodes": 10,
        "target": {"type": "cpu", "percent": 60},
    }
    assert plain.words() == "2..10 nodes at CPU 60 %"
    queue = MetricTarget(
        namespace="Q", name="Depth", statistic="Sum", dimensions={"b": "1", "a": "2"}, value=2.5
    )
    scaling = AutoscalingConfig(min_nodes=0, max_nodes=0, target=queue)
    assert scaling.target.manifest() == {
        "type": "metric",
        "namespace": "Q",
        "name": "Depth",
        "statistic": "Sum",
        "dimensions": {"a": "2", "b": "1"},
        "value": 2.5,
    }
    assert repr(AutoscalingConfig(min_nodes=1, max_nodes=2, target=CpuTarget(62.5))) == (
        "AutoscalingConfig(min_nodes=1, max_nodes=2, target=CpuTarget(62.5))"
    )


def test_types_say_what_they_are() -> None:
    for dtype, text, manifest in [
        (Bool, "Bool", "bool"),
        (Bytes, "Bytes", "bytes"),
        (Timestamp, "Timestamp", "timestamp"),
        (Array(Float64), "Array(Float64)", {"array": "float64"}),
        (Map(String, Array(Int64)), "Map(String, Array(Int64))", {"map": {"array": "int64"}}),
        (Struct([Field("lat", Float64)]), "Struct(lat: Float64)", {"struct": [{"name": "lat", "type": "float64"}]}),
    ]:  # fmt: skip
        assert (str(dtype), dtype.manifest()) == (text, manifest)
    assert Array(Float64) == Array(Float64) != Array(Int64)


@realtime_feature_view(
    sources=[
        RequestSource(schema=[Field("distance", Float64), Field("air_time", Float64)]),
        RequestSource(schema=[Field("at", Timestamp)]),
    ],
    mode="python",
    features=[Attribute("mph", Float64), Attribute("hour", Int64)],
)
def speed(flight: Any, schedule: Any) -> Any:
    """Speed."""
    return {"mph": flight["distance"] / flight["air_time"] * 60, "hour": schedule["at"].hour}


NOON = datetime(2013, 1, 1, 12, tzinfo=timezone.utc)


def test_a_view_is_called_as_it_is_written_and_run_as_it_is_served() -> None:
    assert speed({"distance": 60, "air_time": 60}, schedule={"at": NOON}) == {"mph": 60.0, "hour": 12}
    assert speed.__name__ == "speed" and speed.__doc__ == "Speed."
    zone = timezone(timedelta(hours=-5))
    flight = {"distance": 60, "air_time": 60.0, "ignored": object()}
    assert speed.run(flight=flight, schedule={"at": NOON.astimezone(zone)}) == {"mph": 60.0, "hour": 12}
    assert speed.run(flight, {"at": NOON}) == {"mph": 60.0, "hour": 12}
    for args, kwargs in [((), {}), ((flight,), {"flight": flight}), ((flight, 1), {}), ((flight, {}, {}), {})]:
        with pytest.raises(TypeError, match="speed.run"):
            speed.run(*args, **kwargs)
    with pytest.raises(RowError) as caught:
        speed.run({"distance": 60.0, "air_time": 0}, {"at": NOON})
    assert (caught.value.kind, caught.value.function) == ("function", "speed")
    assert "return {" in caught.value.traceback and "_evaluate" not in caught.value.traceback
    with pytest.raises(RowError, match="needs field 'air_time' .Float64."):
        speed.run({"distance": 60.0}, {"at": NOON})


def test_the_versions_agree() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{outstation.__version__}"' in text
