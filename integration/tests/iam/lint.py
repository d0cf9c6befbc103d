"""Prints what parliament, cloudsplaining and policy-sentry find in IAM policies, a line each, sorted."""

import json
import sys
import types
from pathlib import Path

from cloudsplaining.scan.policy_document import PolicyDocument
from policy_sentry.querying.actions import get_privilege_info

# parliament finds its data with pkg_resources, which setuptools no longer has.
sys.modules["pkg_resources"] = types.SimpleNamespace(
    resource_filename=lambda package, name: str(Path(sys.modules[package].__file__).parent / name)
)
from parliament import analyze_policy_string  # noqa: E402


def as_list(value):
    return value if isinstance(value, list) else [value]


def parliament(text):
    """One finding per statement that it is about."""
    sids = [(text[: text.index(f'"Sid": "{s["Sid"]}"')].count("\n") + 1, s["Sid"]) for s in json.loads(text)["Statement"]]
    for finding in analyze_policy_string(text).findings:
        line = finding.location["line"] if isinstance(finding.location, dict) and "line" in finding.location else 0
        about = [sid for at, sid in sids if at <= line + 1]
        detail = finding.detail
        if isinstance(detail, list):
            detail = ", ".join(sorted(one["required_format"].rsplit(":", 1)[-1] for one in detail))
        yield f"parliament {about[-1] if about else '-'}: {finding.issue} {detail}".rstrip()


def cloudsplaining(text):
    document = PolicyDocument(json.loads(text))
    for name in (
        "allows_privilege_escalation",
        "permissions_management_without_constraints",
        "write_actions_without_constraints",
        "allows_data_exfiltration_actions",
        "credentials_exposure",
        "infrastructure_modification",
        "service_wildcard",
    ):
        found = getattr(document, name)
        for one in found:
            said = one["type"] if isinstance(one, dict) else one
            yield f"cloudsplaining: {name} {said}"


def plain(key):
    """`aws:ResourceTag/team` as the database has it: `aws:resourcetag`."""
    return key.split("/")[0].lower()


def exists(text):
    """Actions that AWS does not have, and condition keys that it does not fill for an action."""
    for statement in json.loads(text)["Statement"]:
        for action in as_list(statement["Action"]):
            service, name = action.split(":")
            if name == "*":
                continue
            try:
                kinds = get_privilege_info(service, name)["resource_types"].values()
            except Exception:  # It raises exactly this.
                yield f"policy-sentry {statement['Sid']}: no action {action}"
                continue
            known = {plain(key) for kind in kinds for key in kind["condition_keys"]}
            for keys in statement.get("Condition", {}).values():
                for key in keys:
                    if plain(key) not in known:
                        yield f"policy-sentry {statement['Sid']}: {action} has no key {key}"


# A linter that finds nothing here has not looked.
BAD = """{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "Bad",
      "Effect": "Allow",
      "Action": ["iam:PassRole", "ec2:RunInstances", "ec2:RunInstance"],
      "Resource": "*"
    }
  ]
}"""
LOOKS = (parliament, cloudsplaining, exists)

lines = set()
for path in map(Path, sys.argv[1:]):
    text = path.read_text()
    for look in LOOKS:
        lines.update(f"{path.stem} {finding}" for finding in look(text))
assert all(any(look(BAD)) for look in LOOKS)
print("".join(f"{line}\n" for line in sorted(lines)), end="")
print("all three have looked")
