"""Outstation: server groups for feature transformations, declared in Python.

What is imported from here is for declarations; `python -m outstation.declare DIR` prints what a
folder declares, `python -m outstation.worker` evaluates it inside a transform server.
"""

from ._context import RealtimeContext, Secret, SecretError
from ._declarations import (
    Attribute,
    Environment,
    FeatureService,
    RealtimeFeatureView,
    RequestSource,
    TransformServerGroup,
    realtime_feature_view,
)
from ._errors import DeclarationError
from ._evaluate import RowError
from ._limits import Limits
from ._scaling import AutoscalingConfig, CpuTarget, MetricTarget, ProvisionedScalingConfig
from ._version import VERSION as __version__

__all__ = [
    "Attribute",
    "AutoscalingConfig",
    "CpuTarget",
    "DeclarationError",
    "Environment",
    "FeatureService",
    "Limits",
    "MetricTarget",
    "ProvisionedScalingConfig",
    "RealtimeContext",
    "RealtimeFeatureView",
    "RequestSource",
    "RowError",
    "Secret",
    "SecretError",
    "TransformServerGroup",
    "__version__",
    "realtime_feature_view",
]
