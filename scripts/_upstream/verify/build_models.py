"""Verify a patched tree: it imports, builds each model exactly, and leaves upstream's own models unchanged."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _upstream.pin import UpstreamError, is_for_release, list_patches
from _upstream.processes import run_piped
from _upstream.verify.environment import OUR_REQUIREMENTS, python_command, read_requirements

PARAMETERS = "scripts/_upstream/verify/parameters.json"
# Models of each task and each kind of head, old and new; those that a release does not ship are skipped
VANILLA = (
    *("rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "yolo26n", "yolo26n-seg", "yolo26n-sem", "yolo26n-depth"),
    *("yolo26n-cls", "yolo26n-pose", "yolo26n-obb", "yolo11n", "yolo11n-obb", "yolov8n-seg", "yolov8s-worldv2"),
    *("yoloe-11s", "yolov10n", "yolov9c"),
)


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a patched tree."""

    models: int  # right ones
    of_models: int
    vanilla: int  # equal ones
    of_vanilla: int
    problems: list[str]


def read_expected_parameters(root: Path) -> dict[str, int]:
    """Return the expected number of parameters of each model file of the checkout.

    Raises:
        UpstreamError: If a model file has no recorded count, or a count has no file.
    """
    recorded = json.loads((root / PARAMETERS).read_text(encoding="utf-8"))
    files = {file.stem for file in (root / "cfg_custom" / "models").glob("*.yaml")}
    for name in sorted(files ^ recorded.keys()):
        where = PARAMETERS if name in files else "cfg_custom/models"
        raise UpstreamError(f"{name} is not in {where}: a model file and its parameters are recorded together")
    return dict(sorted(recorded.items()))


def list_vanilla_models(tree: Path) -> list[str]:
    """List the models of `VANILLA` that the release has, under its own file names."""
    shipped = {file.stem for file in (tree / "ultralytics" / "cfg" / "models").rglob("*.yaml")}
    return [f"{name}.yaml" for name in VANILLA if remove_scale(name) in shipped or name in shipped]


def remove_scale(name: str) -> str:
    """Return the file name from which a scaled model is read: yolo26-seg for yolo26n-seg."""
    return re.sub(r"(\d)[nsmlx](?=-|$)", r"\1", name)


def verify_tree(
    root: Path, release: str, wheel: Path, ours: Path, theirs: Path, done: Callable[[str], None]
) -> Verdict:
    """Build the models on a patched tree and on the untouched one, in an environment of that release.

    Args:
        root: The checkout, for the models and the parameters they must have.
        release: The release of both trees.
        wheel: Its wheel, for what the release requires.
        ours: The patched tree: a folder with ultralytics/ and cfg_custom/.
        theirs: The untouched one.
        done: Called with the name of each model after it was built.
    """
    needs = [*read_requirements(wheel), *OUR_REQUIREMENTS]
    expected, names = read_expected_parameters(root), list_vanilla_models(theirs)
    built, problems = run_probe(needs, ours, "shipped", [f"{name}.yaml" for name in expected], done)
    for family in ("rtdetr", "yolo"):
        if not any(name.startswith(family) for name in names):
            problems.append(f"{release} ships no {family} model that is known here, so none was compared")
    right = 0
    for name, parameters in expected.items():
        wrong = list_problems(built.get(f"{name}.yaml"), parameters)
        problems += [f"{name}: {line}" for line in wrong]
        right += not wrong
    suffix = [patch for patch in list_patches(root) if "Name-the-fork" in patch.name and is_for_release(patch, release)]
    version = built.get("ultralytics", {}).get("version", "")
    if suffix and version and not version.startswith(f"{release}+addmodules."):
        problems.append(f"the version is {version}, not {release}+addmodules.N")

    mine, mine_problems = run_probe(needs, ours, "vanilla", names, done)
    upstreams, upstreams_problems = run_probe(needs, theirs, "vanilla", names, done)
    problems += mine_problems + [f"untouched: {line}" for line in upstreams_problems]
    equal = 0
    for name in names:
        sides = [side.get(name, {"error": "was not built"}) for side in (mine, upstreams)]
        if sides[0] == sides[1] and "error" not in sides[0]:
            equal += 1
        else:
            ours_is, theirs_is = (side.get("error", "builds") for side in sides)
            problems.append(f"{name} is not the untouched release's: ours {ours_is}, untouched {theirs_is}")
    return Verdict(right, len(expected), equal, len(names), problems)


def list_problems(found: dict | None, parameters: int) -> list[str]:
    """List the problems of one of this project's models."""
    if found is None:
        return ["was not built"]
    if "error" in found:
        return [found["error"]]
    lines = []
    if found["parameters"] != parameters:
        lines.append(f"has {found['parameters']:,} parameters, not {parameters:,}")
    lines += [f"{key} is wrong" for key in ("output", "loss", "fused") if found.get(key) is False]
    if found.get("without gradient"):
        lines.append(f"{len(found['without gradient'])} parameters get no gradient: {found['without gradient'][0]}, …")
    return lines


def run_probe(
    needs: list[str], tree: Path, kind: str, names: list[str], done: Callable[[str], None]
) -> tuple[dict[str, dict], list[str]]:
    """Run model_probe.py on a tree; return its results by model, and the problems of the whole run."""
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="ultralytics-probe-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "YOLO_CONFIG_DIR": folder,
            "YOLO_OFFLINE": "true",
        }
        last = ""
        command = [*python_command(needs), str(Path(__file__).with_name("model_probe.py")), kind, *names]
        with run_piped(command, Path(folder), environment) as process:
            for line in process.stdout:
                last = line.strip() or last
                if line.startswith("PROBE"):
                    data = json.loads(line.removeprefix("PROBE"))
                    found[data.pop("name", "ultralytics")] = data
                    done(next(reversed(found)))
    if not found:
        raise UpstreamError(f"uv could not make the environment: {last}; connect to the network and run this again")
    del found["started"]
    if "ultralytics" not in found:
        return found, [f"ultralytics does not import: {last}"]
    if Path(found["ultralytics"]["file"]).resolve() != (tree / "ultralytics" / "__init__.py").resolve():
        return found, [f"the models were built from {found['ultralytics']['file']}, not from {tree}"]
    return found, [f"building models ended early: {last}"] if process.returncode else []
