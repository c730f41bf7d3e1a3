"""Write DEPENDENCIES.md: the packages that this project needs, their versions and licences, and pip-audit's findings.

    uv run --all-extras python scripts/dependencies.py

The versions are those that uv resolves and installs today on this platform; the licences are those that the packages
state.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from _upstream.pin import tomllib

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "uv run --all-extras python scripts/dependencies.py"
EXPORT = "uv export --quiet --all-extras --no-hashes --no-emit-project --output-file pins.txt"
AUDIT = "uvx pip-audit --requirement pins.txt --no-deps --disable-pip --format json"
SERVICES = ("pypi", "osv")


def read_direct_requirements() -> dict[str, list[str]]:
    """Read the requirements in pyproject.toml, by their use."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = file["project"]
    extras = {f"extra `{name}`": needs for name, needs in project["optional-dependencies"].items()}
    groups = {f"group `{name}`": needs for name, needs in file["dependency-groups"].items()}
    return {"all": project["dependencies"], **extras, **groups}


def find_distributions(needs: list[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that requirements bring, themselves included, by name."""
    found, seen, waiting = {}, set(), [(Requirement(need), {""}) for need in needs]
    while waiting:
        need, extras = waiting.pop()
        if (need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras)) or str(need) in seen:
            continue
        seen.add(str(need))
        try:
            distribution = metadata.distribution(need.name)
        except metadata.PackageNotFoundError:
            sys.exit(f"dependencies.py: {need.name} is not installed; run `{COMMAND}`")
        found[canonicalize_name(need.name)] = distribution
        waiting += [(Requirement(further), {"", *need.extras}) for further in distribution.requires or []]
    return found


def read_licence(distribution: metadata.Distribution) -> str:
    """Return a distribution's licence: its expression, else its classifiers, else the first line of its text."""
    data = distribution.metadata
    classifiers = [c.rpartition(" :: ")[2] for c in data.get_all("Classifier", []) if c.startswith("License :: ")]
    files = [file for file in distribution.files or [] if file.name.upper().startswith("LICENSE")]
    texts = [data.get("License") or "", *(file.read_text(encoding="utf-8") for file in files)]
    lines = [text.strip().partition("\n")[0][:60] for text in texts if text.strip()]
    return data.get("License-Expression") or ", ".join(classifiers) or (lines or ["not stated"])[0]


def format_tables() -> str:
    """Format the tables of the direct requirements and of the packages that these bring."""
    asked = read_direct_requirements()
    closures = {what: find_distributions(needs) for what, needs in asked.items()}
    named = {canonicalize_name(Requirement(need).name) for needs in asked.values() for need in needs}
    everything = {name: found for closure in closures.values() for name, found in closure.items()}
    parts = []
    for title, names in (("Asked for", everything.keys() & named), ("Brought by these", everything.keys() - named)):
        rows = [f"## {title}", "", "| package | version | licence | for |", "|---|---|---|---|"]
        for name in sorted(names):
            uses = [what for what, closure in closures.items() if name in closure]
            uses = uses[:1] if uses[0] == "all" else uses
            rows.append(
                f"| {name} | {everything[name].version} | {read_licence(everything[name])} | {', '.join(uses)} |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def run_audit(service: str) -> str:
    """Run pip-audit on the pinned versions; return its answer as a paragraph or a list."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*EXPORT.split()[:-1], f"{folder}/pins.txt"], cwd=ROOT, check=True)
        command = [*AUDIT.split(), "--vulnerability-service", service, "--progress-spinner", "off"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return f"no answer: {done.stderr.strip().splitlines()[-1].partition(': ')[0]}; the service was not reached."
    skipped = [package for package in found if "skip_reason" in package]
    bad = [package for package in found if package.get("vulns")]
    lines = [f"{len(found) - len(skipped)} of {len(found)} packages known to the service, {len(bad)} with known flaws."]
    lines += [f"- {package['name']} {package['version']}: {format_flaws(package['vulns'])}" for package in bad]
    if len(skipped) == len(found):
        lines = [f"no answer: the service knew none of the {len(found)} packages, so it was not reached."]
    return "\n".join(lines)


def format_flaws(flaws: list[dict]) -> str:
    """Format flaws, with the versions that fix them."""
    return "; ".join(f"{flaw['id']} (mended in {', '.join(flaw['fix_versions']) or 'none'})" for flaw in flaws)


def main() -> None:
    """Write the file."""
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    answers = "\n\n".join(f"`--vulnerability-service {service}`: {run_audit(service)}" for service in SERVICES)
    text = f"""\
# What this package depends on

Written by `{COMMAND}` on {datetime.date.today()}, with {where}:
what uv resolves there on that day. Licences are as each package states them; whether they suit your use is yours to
judge. Our own is AGPL-3.0, as upstream's. NVIDIA's libraries come with torch's default build for Linux only.

{format_tables()}

## Known vulnerabilities

Asked on {datetime.date.today()}:

```sh
{EXPORT}
{AUDIT} --vulnerability-service {SERVICES[0]}
```

{answers}
"""
    (ROOT / "DEPENDENCIES.md").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
