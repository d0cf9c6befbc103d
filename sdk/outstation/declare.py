"""`python -m outstation.declare DIR`: prints what the folder declares, as a JSON manifest.

`--text` prints a listing for people instead. Errors are two lines, `error:` and `hint:`, with the
line of the declaration. What the declarations themselves print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any, Dict, List, Optional

from ._declarations import Declaration, FeatureService, RealtimeFeatureView, TransformServerGroup
from ._errors import DeclarationError
from ._loading import Loaded, load, problems
from ._parent import die_with_parent
from ._version import VERSION

MANIFEST_VERSION = 1


def manifest(loaded: Loaded) -> Dict[str, Any]:
    """The same declarations give the same bytes: everything is in order of name."""
    return {
        "manifest": MANIFEST_VERSION,
        "outstation": VERSION,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "environments": [
            {"name": e.name, "requirements": os.path.normpath(e.requirements).replace(os.sep, "/")}
            for e in loaded.environments
        ],
        "groups": [_group(group) for group in loaded.groups],
        "feature_views": [_view(view) for view in loaded.views],
        "feature_services": [_service(service) for service in loaded.services],
    }


def _people(declaration: Declaration) -> Dict[str, Any]:
    return {
        "owner": declaration.owner,
        "description": declaration.description,
        "tags": declaration.tags,
    }


def _group(group: TransformServerGroup) -> Dict[str, Any]:
    return {
        "name": group.name,
        "kind": "transform",
        "environment": group.environment,
        "scaling": group.scaling_config.manifest(),
        **_people(group),
        "prevent_destroy": group.prevent_destroy,
        "options": group.options,
    }


def _view(view: RealtimeFeatureView) -> Dict[str, Any]:
    return {
        "name": view.name,
        "mode": view.mode,
        "sources": [
            {"type": "request", "schema": [field.manifest() for field in source.schema]}
            for source in view.sources
        ],
        "features": [feature.manifest() for feature in view.features],
        "context": view.takes_context,
        "secrets": sorted(view.secrets),
        "limits": view.limits.manifest(),
        **_people(view),
    }


def _service(service: FeatureService) -> Dict[str, Any]:
    return {
        "name": service.name,
        "features": [view.name for view in service.features],
        "transform_server_group": service.transform_server_group,
        **_people(service),
    }


def listing(loaded: Loaded) -> str:
    """For people: one line for each declaration, features below their view."""
    lines: List[str] = []
    for environment in loaded.environments:
        lines.append(f"environment   {environment.name}  {environment.requirements}")
    for group in loaded.groups:
        nodes = group.scaling_config.words()
        lines.append(f"transform     {group.name}  {nodes}, environment {group.environment}")
    for service in loaded.services:
        views = ", ".join(view.name for view in service.features)
        lines.append(f"service       {service.name}  {views}  on {service.transform_server_group}")
    for view in loaded.views:
        fields = [f"{f.name} {f.dtype}" for source in view.sources for f in source.schema]
        more = "".join(
            [f", {view.mode}" if view.mode != "python" else ""]
            + [", context" if view.takes_context else ""]
            + [f", secret {name}" for name in sorted(view.secrets)]
        )
        lines.append(f"feature view  {view.name}{more}  from {', '.join(fields)}")
        lines.extend(f"              {view.name}.{f.name} {f.dtype}" for f in view.features)
    return "\n".join(lines)


def declared(folder: str) -> Loaded:
    """Loads and checks; raises the first `DeclarationError` there is."""
    loaded = load(folder)
    errors = [broken.error for broken in loaded.broken]
    errors += [problem.error for problem in problems(loaded)]
    if errors:
        first = errors[0]
        if len(errors) > 1:
            more = f" (and {len(errors) - 1} more)"
            first = DeclarationError(first.message + more, hint=first.hint, where=first.where)
        raise first
    return loaded


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m outstation.declare", description="Prints what a folder declares, as JSON."
    )
    parser.add_argument("dir", help="folder with features.py")
    parser.add_argument("--text", action="store_true", help="a listing for people instead of JSON")
    parser.add_argument("--parent", type=int, help="process id of the parent, to end when it does")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(options.parent)

    # Only the manifest may reach the real stdout: from here on, descriptor 1 is stderr, for the
    # declarations, for what they start, and for what runs at exit.
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    sys.dont_write_bytecode = True  # the folder is the user's, and is packed

    try:
        loaded = declared(options.dir)
    except DeclarationError as error:
        print(f"error: {_one_line(error.one_line)}\nhint: {_one_line(error.hint)}", file=sys.stderr)
        return 1
    with answer:
        if options.text:
            print(listing(loaded), file=answer)
        else:
            json.dump(manifest(loaded), answer, ensure_ascii=False, separators=(",", ":"))
            answer.write("\n")
    return 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
