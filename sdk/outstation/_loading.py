"""Which files of a folder hold declarations, importing them, and checking them against each other.

The rule: `features.py` if there is one, else every `*.py` directly in the folder in order of name,
except `_*.py`, `test_*.py`, `*_test.py`, `conftest.py` and `setup.py`. The folder is on the import
path, so what these import from beside them is loaded with them.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from ._declarations import (
    Declaration,
    Environment,
    FeatureService,
    RealtimeFeatureView,
    TransformServerGroup,
    collecting,
)
from ._errors import DeclarationError, Where, innermost_below, shown_path
from ._evaluate import describe, user_traceback

ENTRY = "features.py"
_NOT_DECLARATIONS = ("_*.py", "test_*.py", "*_test.py", "conftest.py", "setup.py")


@dataclass
class BrokenModule:
    """A file that could not be imported, and what it would have declared, as far as one can see."""

    file: str
    error: DeclarationError
    traceback: str
    #: (name, is a service)
    targets: List[Tuple[str, bool]]


@dataclass
class Loaded:
    folder: str
    declarations: List[Declaration] = field(default_factory=list)
    broken: List[BrokenModule] = field(default_factory=list)

    @property
    def environments(self) -> List[Environment]:
        return _by_name(d for d in self.declarations if isinstance(d, Environment))

    @property
    def groups(self) -> List[TransformServerGroup]:
        return _by_name(d for d in self.declarations if isinstance(d, TransformServerGroup))

    @property
    def views(self) -> List[RealtimeFeatureView]:
        return _by_name(d for d in self.declarations if isinstance(d, RealtimeFeatureView))

    @property
    def services(self) -> List[FeatureService]:
        return _by_name(d for d in self.declarations if isinstance(d, FeatureService))


def _by_name(declarations: Iterator[Declaration]) -> List:  # type: ignore[type-arg]
    return sorted(declarations, key=lambda declaration: declaration.name)


def files(folder: str) -> List[str]:
    """Names of the files that hold the declarations."""
    if not os.path.isdir(folder):
        raise DeclarationError(
            f"{shown_path(folder)} is not a folder",
            hint="give the folder that holds your declarations",
            where=None,
        )
    names = sorted(
        name
        for name in os.listdir(folder)
        if name.endswith(".py")
        and not name.startswith(".")
        and not any(fnmatch.fnmatch(name, pattern) for pattern in _NOT_DECLARATIONS)
        and os.path.isfile(os.path.join(folder, name))
    )
    if ENTRY in names:
        return [ENTRY]
    if not names:
        raise DeclarationError(
            f"no declarations in {shown_path(folder)}",
            hint=f"put them into {os.path.join(shown_path(folder), ENTRY)}",
        )
    return names


def load(
    folder: str,
    entering: Callable[[str], None] = lambda name: None,
    skip: Optional[Mapping[str, str]] = None,
) -> Loaded:
    """Imports the declarations of `folder`. A file that fails takes only its own with it, and so does one
    of `skip`, which says why it must not be tried again."""
    folder = os.path.abspath(folder)
    names = files(folder)
    _put_first(folder)
    importlib.invalidate_caches()
    loaded = Loaded(folder)
    for name in names:
        if skip and name in skip:
            error = DeclarationError(
                skip[name],
                hint="correct what the declarations do when they are imported",
                where=Where(os.path.join(folder, name), 1),
            )
            loaded.broken.append(_broken(folder, name, [], error))
            continue
        entering(name)
        with collecting() as declared:
            try:
                _import(folder, name)
            except BaseException as error:  # SystemExit too: a file that exits is a broken file
                loaded.broken.append(_broken(folder, name, declared, error))
                continue
        loaded.declarations.extend(declared)
    return loaded


def _put_first(folder: str) -> None:
    """On the import path, in place of the working directory that `python -m` puts there."""
    path = [entry for entry in sys.path if entry != folder]
    if path and path[0] in ("", os.getcwd()) and not getattr(sys.flags, "safe_path", False):
        del path[0]
    sys.path[:] = [folder, *path]


def _import(folder: str, name: str) -> None:
    file, stem = os.path.join(folder, name), name[: -len(".py")]
    rename = f"rename {name}: Python has a module of that name elsewhere"
    if not stem.isidentifier():
        raise DeclarationError(
            f"{stem!r} cannot be a module name",
            hint=f"rename {name} to letters, digits and '_'",
            where=Where(file, 1),
        )
    module = importlib.import_module(stem)
    if os.path.abspath(getattr(module, "__file__", None) or "") != file:
        raise DeclarationError(
            f"{stem!r} is the name of another module", hint=rename, where=Where(file, 1)
        )


def _broken(
    folder: str, name: str, declared: List[Declaration], error: BaseException
) -> BrokenModule:
    file = os.path.join(folder, name)
    targets = {
        d.name: isinstance(d, FeatureService)
        for d in declared
        if isinstance(d, (RealtimeFeatureView, FeatureService))
    }
    for target, is_service in _names_in_source(file):
        targets.setdefault(target, is_service)
    return BrokenModule(
        name, _explain(folder, file, error), user_traceback(error, folder), sorted(targets.items())
    )


def _explain(folder: str, file: str, error: BaseException) -> DeclarationError:
    """An exception of an import as an error with a place and a hint."""
    if isinstance(error, DeclarationError):
        return error
    if isinstance(error, SyntaxError):  # of a file with null bytes without a place
        return DeclarationError(
            f"{type(error).__name__}: {error.msg}",
            hint="correct the syntax there",
            where=Where(error.filename or file, error.lineno or 1),
        )
    where = innermost_below(folder, error.__traceback__) or Where(file, 1)
    hint = "correct what the declarations do when they are imported"
    if isinstance(error, ImportError):
        missing = error.name or ""
        if missing == "outstation" or missing.startswith("outstation."):
            module = sys.modules.get(missing)
            has = ", ".join(getattr(module, "__all__", []))
            hint = f"{missing} has {has}" if has else "outstation and outstation.types are for import"
        elif isinstance(error, ModuleNotFoundError):
            hint = (
                f"import {missing} inside of the function that uses it, where the environment's "
                f"packages are, or install it for {sys.executable} as well"
            )
    elif isinstance(error, SystemExit):
        hint = "declarations must not exit; remove sys.exit() or exit()"
    return DeclarationError(describe(error), hint=hint, where=where)


def _names_in_source(file: str) -> List[Tuple[str, bool]]:
    """Views and services that a file would declare, found without running it."""
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            text = source.read()
    except OSError:
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _names_in_text(text)
    found: List[Tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and _called(decorator) == "realtime_feature_view":
                    found.append((_name_argument(decorator) or node.name, False))
        elif isinstance(node, ast.Call) and _called(node) == "FeatureService":
            name = _name_argument(node)
            if name:
                found.append((name, True))
    return found


def _names_in_text(text: str) -> List[Tuple[str, bool]]:
    """The same for a file that does not parse: a guess, good enough to tell callers why."""
    views = re.findall(r"^@(?:\w+\.)?realtime_feature_view\b(?:.*\n)+?def +(\w+)", text, re.MULTILINE)
    services = re.findall(r"\bFeatureService\(\s*name=[\"']([\w-]+)[\"']", text)
    return [(name, False) for name in views] + [(name, True) for name in services]


def _called(call: ast.Call) -> Optional[str]:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _name_argument(call: ast.Call) -> Optional[str]:
    for keyword in call.keywords:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return keyword.value.value if isinstance(keyword.value.value, str) else None
    return None


@dataclass
class Problem:
    """Declarations that do not fit together."""

    declaration: Declaration
    error: DeclarationError


def problems(loaded: Loaded) -> List[Problem]:
    """Checks the declarations against each other, and against the files beside them."""
    found: List[Problem] = []

    def report(declaration: Declaration, message: str, hint: str) -> None:
        what = f"{declaration.kind} {declaration.name!r} {message}"
        found.append(
            Problem(declaration, DeclarationError(what, hint=hint, where=declaration.where))
        )

    # Views and services share one namespace: a caller names either as the target.
    kinds = ((Environment,), (TransformServerGroup,), (RealtimeFeatureView, FeatureService))
    for kind in kinds:
        first: Dict[str, Declaration] = {}
        for declaration in loaded.declarations:
            if isinstance(declaration, kind):
                before = first.setdefault(declaration.name, declaration)
                if before is not declaration:
                    same = before.kind if before.kind != declaration.kind else "one"
                    report(
                        declaration,
                        f"has the name of {same} at {before.where}",
                        "names are unique among views and services, among groups, and among "
                        "environments; rename one of the two",
                    )
    environments = {environment.name for environment in loaded.environments}
    groups = {group.name for group in loaded.groups}
    for environment in loaded.environments:
        _check_requirements(loaded.folder, environment, report)
    for group in loaded.groups:
        if group.environment is None:
            report(group, "has no environment", 'add environment="…"' + _there_is(environments))
        elif group.environment not in environments:
            report(
                group,
                f"wants environment {group.environment!r}, which is not declared",
                f'declare Environment(name="{group.environment}", requirements="requirements.txt")'
                + _there_is(environments),
            )
    for service in loaded.services:
        if service.transform_server_group is None:
            report(
                service,
                "has no transform server group",
                'add transform_server_group="…"' + _there_is(groups),
            )
        elif service.transform_server_group not in groups:
            report(
                service,
                f"wants transform server group {service.transform_server_group!r}, "
                "which is not declared",
                f'declare TransformServerGroup(name="{service.transform_server_group}", …)'
                + _there_is(groups),
            )
        _check_views(loaded, service, report)
    return found


def _there_is(names: "set[str]") -> str:
    return f"; there is {', '.join(sorted(names))}" if names else ""


def _check_requirements(
    folder: str, environment: Environment, report: Callable[[Declaration, str, str], None]
) -> None:
    path = os.path.normpath(os.path.join(folder, environment.requirements))
    if os.path.isabs(environment.requirements) or not path.startswith(os.path.join(folder, "")):
        report(
            environment,
            f"has requirements outside of the folder: {environment.requirements!r}",
            "keep the file with the declarations, so that it is packed with them",
        )
    elif not os.path.isfile(path):
        report(
            environment,
            f"has requirements {environment.requirements!r}, which does not exist",
            f"create {shown_path(path)}, or correct the path (relative to the declarations)",
        )


def _check_views(
    loaded: Loaded, service: FeatureService, report: Callable[[Declaration, str, str], None]
) -> None:
    types: Dict[str, Tuple[object, str]] = {}
    for view in service.features:
        if not any(view is declared for declared in loaded.declarations):
            report(
                service,
                f"lists {view.name!r}, which is not among the declarations",
                "declare the view in a file that is loaded with the service",
            )
        for source in view.sources:
            for each in source.schema:
                dtype, other = types.setdefault(each.name, (each.dtype, view.name))
                if dtype != each.dtype:
                    report(
                        service,
                        f"takes field {each.name!r} as {dtype} for {other!r} "
                        f"and as {each.dtype} for {view.name!r}",
                        "a row has one value for a name: give the field one type in all of the "
                        "service's views, or two names",
                    )
