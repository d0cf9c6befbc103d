"""What a user declares. Each declaration checks itself and enters itself into the registry."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from . import _checks
from ._context import PARAMETER, Secret
from ._errors import DeclarationError, Where, caller
from ._limits import Limits
from ._scaling import ScalingConfig
from ._scaling import scaling_config as _scaling_config
from .types import DataType, Field, data_type

if TYPE_CHECKING:
    from ._evaluate import RowError

#: dict → dict, called for each row; frame → frame, called once for all rows of a request.
MODES = ("python", "pandas")

Function = Callable[..., Any]

_declared: List["Declaration"] = []


@contextlib.contextmanager
def collecting() -> Iterator[List["Declaration"]]:
    """Everything declared inside, in order; nothing of it stays in the registry."""
    global _declared
    before, _declared = _declared, []
    try:
        yield _declared
    finally:
        _declared = before


class Declaration:
    """What all named declarations have."""

    kind = "declaration"

    def __init__(
        self, name: str, description: Optional[str], tags: Optional[Dict[str, str]], owner: Optional[str]
    ) -> None:
        what = type(self).__name__
        self.name: str = _checks.name(what, name)
        what = f"{what} {self.name!r}"
        self.description = _checks.text(
            what, "description", description, _checks.DESCRIPTION_CHARS_MAX
        )
        self.owner = _checks.text(what, "owner", owner, _checks.OWNER_CHARS_MAX)
        self.tags: Dict[str, str] = _checks.tags(what, tags)
        #: The user's line that declares it.
        self.where: Optional[Where] = caller()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Environment(Declaration):
    """A pinned set of Python dependencies, built once, used by any number of groups.

    `requirements` is a requirements file, relative to the folder of the declarations.
    """

    kind = "environment"

    @_checks.strict("Environment")
    def __init__(
        self,
        *,
        name: str,
        requirements: str,
        description: Optional[str] = None,
        tags: Optional[Dict[str, str]] = None,
        owner: Optional[str] = None,
    ) -> None:
        super().__init__(name, description, tags, owner)
        self.requirements: str = _checks.instance(
            f"Environment {name!r}", "requirements", requirements, str, 'a path, as "requirements.txt"'
        )
        _declared.append(self)


class TransformServerGroup(Declaration):
    """A fleet of servers that runs feature views: one running instance of an environment."""

    kind = "transform server group"

    @_checks.strict("TransformServerGroup")
    def __init__(
        self,
        *,
        name: str,
        scaling_config: ScalingConfig,
        description: Optional[str] = None,
        tags: Optional[Dict[str, str]] = None,
        owner: Optional[str] = None,
        prevent_destroy: bool = False,
        environment: Union[str, Environment, None] = None,
        options: Optional[Dict[str, str]] = None,
    ) -> None:
        super().__init__(name, description, tags, owner)
        what = f"TransformServerGroup {name!r}"
        self.scaling_config: ScalingConfig = _scaling_config(what, scaling_config)
        self.prevent_destroy: bool = _checks.instance(
            what, "prevent_destroy", prevent_destroy, bool, "True or False"
        )
        self.environment = _reference(what, "environment", environment, Environment)
        self.options: Dict[str, str] = _checks.options(what, options)
        _declared.append(self)


class RequestSource:
    """Fields that come with each row of a request."""

    @_checks.strict("RequestSource")
    def __init__(self, *, schema: List[Field]) -> None:
        self.schema: Tuple[Field, ...] = _checks.listing(
            "RequestSource", "schema", schema, Field, 'Field("name", type)'
        )
        _checks.distinct("RequestSource", "schema", [field.name for field in self.schema])

    def __repr__(self) -> str:
        return f"RequestSource(schema={list(self.schema)})"


class Attribute:
    """A feature that a view returns."""

    @_checks.strict("Attribute")
    def __init__(self, name: str, dtype: DataType) -> None:
        self.name = _checks.name("Attribute", name)
        self.dtype = data_type(f"Attribute {self.name!r}", "dtype", dtype)

    def manifest(self) -> Any:
        return {"name": self.name, "type": self.dtype.manifest()}

    def __repr__(self) -> str:
        return f"Attribute({self.name!r}, {self.dtype})"


class RealtimeFeatureView(Declaration):
    """What `@realtime_feature_view` makes of a function.

    Calling it calls the function as it is written. `run` does what a server does: checks the
    inputs against the schema, calls, and checks the result against the features.
    """

    kind = "feature view"

    def __init__(
        self,
        function: Function,
        *,
        sources: List[RequestSource],
        mode: str,
        features: List[Attribute],
        name: Optional[str],
        description: Optional[str],
        tags: Optional[Dict[str, str]],
        owner: Optional[str],
        secrets: Optional[List[Secret]],
        limits: Optional[Limits],
    ) -> None:
        if not callable(function) or inspect.isclass(function):
            raise DeclarationError(
                f"realtime_feature_view must decorate a function, not {_checks.shown(function)}",
                hint="write it on the line above `def`",
            )
        super().__init__(
            name if name is not None else getattr(function, "__name__", ""), description, tags, owner
        )
        what = f"feature view {self.name!r}"
        self.function = function
        if mode not in MODES:
            raise DeclarationError(
                f"{what}: mode {mode!r} is not known",
                hint='write mode="python" (one dict at a time) or mode="pandas" (frames)',
            )
        self.mode: str = mode
        self.sources: Tuple[RequestSource, ...] = _checks.listing(
            what, "sources", sources, RequestSource, "RequestSource(schema=[…])"
        )
        self.features: Tuple[Attribute, ...] = _checks.listing(
            what, "features", features, Attribute, 'Attribute("name", type)'
        )
        _checks.distinct(what, "features", [feature.name for feature in self.features])
        #: The parameters that take the sources.
        self.parameters: Tuple[str, ...]
        #: Has the function a parameter `context` besides?
        self.takes_context: bool
        self.parameters, self.takes_context = _parameters(what, function, len(self.sources), mode)
        #: Names of the secrets that the function may read through its context.
        self.secrets: Tuple[str, ...] = _secrets(what, secrets, self.takes_context)
        if limits is not None and not isinstance(limits, Limits):
            raise DeclarationError(
                f"{what}: limits must be Limits, not {_checks.shown(limits)}",
                hint="write limits=Limits(concurrency=4)",
            )
        self.limits: Limits = limits if limits is not None else Limits()
        _same_types(what, self)
        functools.update_wrapper(self, function, updated=())
        _declared.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """Evaluates one row as a server would; one dict for each source, by position or by name.

        `context=RealtimeContext(…)` may be given if the function takes one. Raises
        `outstation.RowError` where a server would answer with an error.
        """
        from ._evaluate import run_locally

        return run_locally(self, args, kwargs)

    def run_batch(self, *args: Any, **kwargs: Any) -> "List[Union[Dict[str, Any], RowError]]":
        """The same for several rows at once: for each source one list of dicts, all of one length.

        Gives what a server would answer for each row: its features, or the `RowError`.
        """
        from ._evaluate import run_batch_locally

        return run_batch_locally(self, args, kwargs)


class FeatureService(Declaration):
    """Feature views that are asked together, and the group that runs them."""

    kind = "feature service"

    @_checks.strict("FeatureService")
    def __init__(
        self,
        *,
        name: str,
        features: List[RealtimeFeatureView],
        transform_server_group: Union[str, TransformServerGroup, None] = None,
        description: Optional[str] = None,
        tags: Optional[Dict[str, str]] = None,
        owner: Optional[str] = None,
    ) -> None:
        super().__init__(name, description, tags, owner)
        what = f"FeatureService {name!r}"
        self.features: Tuple[RealtimeFeatureView, ...] = _checks.listing(
            what,
            "features",
            features,
            RealtimeFeatureView,
            "functions decorated with @realtime_feature_view",
        )
        _checks.distinct(what, "features", [view.name for view in self.features])
        self.transform_server_group = _reference(
            what, "transform_server_group", transform_server_group, TransformServerGroup
        )
        _declared.append(self)


@_checks.strict("realtime_feature_view")
def realtime_feature_view(
    *,
    sources: List[RequestSource],
    mode: str,
    features: List[Attribute],
    name: Optional[str] = None,
    description: Optional[str] = None,
    tags: Optional[Dict[str, str]] = None,
    owner: Optional[str] = None,
    secrets: Optional[List[Secret]] = None,
    limits: Optional[Limits] = None,
) -> Callable[[Function], RealtimeFeatureView]:
    """Declares a function that computes features from what comes with the request.

    With mode="python" it gets one dict for each source, in their order, and returns a dict with one
    value for each feature. Fields that are null come as None, and so may features be returned.

    With mode="pandas" it gets one DataFrame for each source, with all rows of a request, and
    returns a DataFrame (or a dict of columns) with one column for each feature and the same rows.

    `limits` bounds what it may have of a server that it shares.
    A last parameter named `context` gets a `RealtimeContext`; `secrets` says which it may read.
    """

    def decorate(function: Function) -> RealtimeFeatureView:
        return RealtimeFeatureView(
            function,
            sources=sources,
            mode=mode,
            features=features,
            name=name,
            description=description,
            tags=tags,
            owner=owner,
            secrets=secrets,
            limits=limits,
        )

    return decorate


def _reference(what: str, field: str, value: Any, kind: type) -> Optional[str]:
    """A declaration, or its name. Whether it exists is checked when all is loaded."""
    if value is None:
        return None
    if isinstance(value, kind):
        return str(value.name)  # type: ignore[attr-defined]
    if not isinstance(value, str):
        raise DeclarationError(
            f"{what}: {field} must be the name of one, or one, not {_checks.shown(value)}",
            hint=f'write {field}="…" with the name of your {kind.__name__}',
        )
    return _checks.name(what, value, field)


def _parameters(what: str, function: Function, sources: int, mode: str) -> Tuple[Tuple[str, ...], bool]:
    """The names of the parameters that take the sources, and whether there is one for the context
    besides; refuses a function that cannot take them."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return tuple(f"source_{index}" for index in range(sources)), False
    takes = "DataFrame" if mode == "pandas" else "dict"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(
            f"{what}: the function must return a {takes}, but is a coroutine or generator",
            hint="write a plain `def` with `return {…}`",
        )
    positional = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ][:sources]
    # A source may be called so too.
    context = None if PARAMETER in positional else signature.parameters.get(PARAMETER)
    takes_context = context is not None and context.kind in (
        context.POSITIONAL_OR_KEYWORD,
        context.KEYWORD_ONLY,
    )
    try:
        signature.bind(*range(sources), **({PARAMETER: None} if takes_context else {}))
    except TypeError as error:
        hint = "give it as many parameters as there are sources, in their order"
        if PARAMETER in signature.parameters:
            hint += ", and `context` as the last one"
        raise DeclarationError(
            f"{what}: the function must take one {takes} for each of its {sources} "
            f"source{'s' if sources > 1 else ''} ({error})",
            hint=hint,
        ) from None
    names = positional + [f"source_{i}" for i in range(len(positional), sources)]
    return tuple(names), takes_context


def _secrets(what: str, value: Any, takes_context: bool) -> Tuple[str, ...]:
    if value is None:
        return ()
    names = [
        secret.name for secret in _checks.listing(what, "secrets", value, Secret, 'Secret("name")')
    ]
    _checks.distinct(what, "secrets", names)
    if not takes_context:
        raise DeclarationError(
            f"{what}: the function has secrets and no parameter to read them through",
            hint='add a last parameter `context`, and read context.secrets["…"]',
        )
    return tuple(names)


def _same_types(what: str, view: RealtimeFeatureView) -> None:
    seen: Dict[str, DataType] = {}
    for field in (field for source in view.sources for field in source.schema):
        if seen.setdefault(field.name, field.dtype) != field.dtype:
            raise DeclarationError(
                f"{what}: field {field.name!r} is {seen[field.name]} in one source "
                f"and {field.dtype} in another",
                hint="a row has one value for a name: give the field one type, or two names",
            )
