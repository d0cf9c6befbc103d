"""How many nodes a group has: a fixed number, or as many as keep a metric at its target.

The same limits as protocol/src/model.rs and protocol/src/model/target.rs.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Union

from . import _checks
from ._errors import DeclarationError

NODES_MAX = 2**32 - 1  # u32 on the wire; what may really run, the account's guardrails say
STATISTICS = ("Average", "Minimum", "Maximum", "SampleCount", "Sum")
TARGET_VALUE_LEAST = 1e-6
TARGET_VALUE_MOST = 1e15
METRIC_NAME_CHARS_MAX = 255
DIMENSION_VALUE_CHARS_MAX = 1024
DIMENSIONS_MAX = 30


class ProvisionedScalingConfig:
    """A fixed number of nodes."""

    @_checks.strict("ProvisionedScalingConfig")
    def __init__(self, *, desired_nodes: int) -> None:
        self.desired_nodes = _nodes("ProvisionedScalingConfig", "desired_nodes", desired_nodes)

    def manifest(self) -> Dict[str, Any]:
        return {"type": "provisioned", "desired_nodes": self.desired_nodes}

    def words(self) -> str:
        return f"{self.desired_nodes} nodes"

    def __repr__(self) -> str:
        return f"ProvisionedScalingConfig(desired_nodes={self.desired_nodes})"


class CpuTarget:
    """Keeps the average CPU utilization of the nodes at so many percent.

    AWS knows it as the predefined metric `ASGAverageCPUUtilization`.
    """

    @_checks.strict("CpuTarget")
    def __init__(self, percent: float = 60) -> None:
        self.percent = _target_value("CpuTarget", "percent", percent)
        if self.percent > 100:
            raise DeclarationError(
                f"CpuTarget: percent must not be above 100, but is {percent}",
                hint="write CpuTarget(60): nodes are added above that and taken away well below",
            )

    def manifest(self) -> Dict[str, Any]:
        return {"type": "cpu", "percent": self.percent}

    def words(self) -> str:
        return f"CPU {self.percent} %"

    def __repr__(self) -> str:
        return f"CpuTarget({self.percent})"


class MetricTarget:
    """Keeps any CloudWatch metric at a value.

    The words are those of AWS's `CustomizedMetricSpecification` and `TargetValue`. The metric must
    fall as nodes are added: work for each node, not work in all.
    """

    @_checks.strict("MetricTarget")
    def __init__(
        self,
        *,
        namespace: str,
        name: str,
        value: float,
        statistic: str = "Average",
        dimensions: Optional[Dict[str, str]] = None,
    ) -> None:
        what = "MetricTarget"
        self.namespace = _ascii(what, "namespace", namespace, METRIC_NAME_CHARS_MAX)
        self.name = _ascii(what, "name", name, METRIC_NAME_CHARS_MAX)
        if statistic not in STATISTICS:
            raise DeclarationError(
                f"{what}: statistic must be one of {', '.join(STATISTICS)}, "
                f"not {_checks.shown(statistic)}",
                hint='write statistic="Average", or leave it out',
            )
        self.statistic = statistic
        given = {} if dimensions is None else dimensions
        _checks.instance(what, "dimensions", given, dict, 'a dict of strings, as {"queue": "a"}')
        if len(given) > DIMENSIONS_MAX:
            raise DeclarationError(
                f"{what}: {len(given)} dimensions are more than {DIMENSIONS_MAX}",
                hint="CloudWatch knows no metric with more",
            )
        self.dimensions = {
            _ascii(what, "a dimension's name", key, METRIC_NAME_CHARS_MAX): _ascii(
                what, f"dimension {key!r}", item, DIMENSION_VALUE_CHARS_MAX
            )
            for key, item in sorted(given.items(), key=lambda pair: str(pair[0]))
        }
        self.value = _target_value(what, "value", value)

    def manifest(self) -> Dict[str, Any]:
        return {
            "type": "metric",
            "namespace": self.namespace,
            "name": self.name,
            "statistic": self.statistic,
            "dimensions": self.dimensions,
            "value": self.value,
        }

    def words(self) -> str:
        return f"{self.statistic} {self.namespace}/{self.name} {self.value}"

    def __repr__(self) -> str:
        return (
            f"MetricTarget(namespace={self.namespace!r}, name={self.name!r}, "
            f"statistic={self.statistic!r}, dimensions={self.dimensions!r}, value={self.value})"
        )


Target = Union[CpuTarget, MetricTarget]


class AutoscalingConfig:
    """Between two numbers of nodes, as many as keep `target`: AWS decides, by target tracking.

    target: `CpuTarget(percent)`, or `MetricTarget(…)` for any CloudWatch metric.
    """

    @_checks.strict("AutoscalingConfig")
    def __init__(self, *, min_nodes: int, max_nodes: int, target: Optional[Target] = None) -> None:
        what = "AutoscalingConfig"
        self.min_nodes = _nodes(what, "min_nodes", min_nodes)
        self.max_nodes = _nodes(what, "max_nodes", max_nodes)
        if self.min_nodes > self.max_nodes:
            raise DeclarationError(
                f"{what}: min_nodes {min_nodes} is more than max_nodes {max_nodes}",
                hint="give max_nodes at least as many as min_nodes",
            )
        self.target: Target = CpuTarget() if target is None else target
        if not isinstance(self.target, (CpuTarget, MetricTarget)):
            raise DeclarationError(
                f"{what}: target must be a CpuTarget or a MetricTarget, not {_checks.shown(target)}",
                hint="write target=CpuTarget(60), or leave it out",
            )
        if isinstance(self.target, CpuTarget) and self.min_nodes == 0:
            raise DeclarationError(
                f"{what}: without a node there is no CPU to measure, so min_nodes must not be 0",
                hint="write min_nodes=1, or a MetricTarget on something that is there without nodes",
            )

    def manifest(self) -> Dict[str, Any]:
        return {
            "type": "autoscaling",
            "min_nodes": self.min_nodes,
            "max_nodes": self.max_nodes,
            "target": self.target.manifest(),
        }

    def words(self) -> str:
        return f"{self.min_nodes}..{self.max_nodes} nodes at {self.target.words()}"

    def __repr__(self) -> str:
        return (
            f"AutoscalingConfig(min_nodes={self.min_nodes}, max_nodes={self.max_nodes}, "
            f"target={self.target!r})"
        )


ScalingConfig = Union[ProvisionedScalingConfig, AutoscalingConfig]


def scaling_config(what: str, value: Any) -> ScalingConfig:
    if isinstance(value, (ProvisionedScalingConfig, AutoscalingConfig)):
        return value
    raise DeclarationError(
        f"{what}: scaling_config must be a ProvisionedScalingConfig(desired_nodes=…) or an "
        f"AutoscalingConfig(min_nodes=…, max_nodes=…), not {_checks.shown(value)}",
        hint="write scaling_config=ProvisionedScalingConfig(desired_nodes=3), "
        "or AutoscalingConfig(min_nodes=2, max_nodes=10)",
    )


def _nodes(what: str, field: str, value: Any) -> int:
    nodes = _checks.instance(what, field, value, int, "a whole number")
    if not 0 <= nodes <= NODES_MAX:
        raise DeclarationError(
            f"{what}: {field} must not be negative or above {NODES_MAX}, but is {nodes}",
            hint="give the number of nodes to run; 0 keeps the group without any",
        )
    return nodes


def _target_value(what: str, field: str, value: Any) -> float:
    """Of few digits, so that every program on its way reads the same number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not TARGET_VALUE_LEAST <= value <= TARGET_VALUE_MOST
        or float(f"{value:.14e}") != value
    ):
        raise DeclarationError(
            f"{what}: {field} must be a number from 0.000001 to 1e15 of at most 15 digits, "
            f"not {_checks.shown(value)}",
            hint=f"write {field}=60",
        )
    return int(value) if value == int(value) else float(value)


def _ascii(what: str, field: str, value: Any, chars_max: int) -> str:
    text = _checks.instance(what, field, value, str, "a string")
    printable = all(" " <= character <= "~" for character in text)
    if not printable or not 1 <= len(text) <= chars_max or text.strip() != text:
        raise DeclarationError(
            f"{what}: {field} {text[:80]!r} is not 1 to {chars_max} printable ASCII characters",
            hint="write it as CloudWatch shows it",
        )
    return text
