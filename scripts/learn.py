"""Train every tiny model on the shapes, from scratch, and write what they learned to benchmarks/learning.md.

Run the command again to continue: a stopped run resumes, and a finished one is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from _compare.study_folder import Run  # noqa: E402
from _compare.training_run import read_epochs, train_run  # noqa: E402
from ultralytics import RTDETR, __version__  # noqa: E402
from ultralytics.utils.torch_utils import get_cpu_info  # noqa: E402

MODELS = sorted(file.stem for file in (ROOT / "cfg_custom" / "models").glob("rtdetr-tiny*.yaml"))
SETTINGS = {"data": "shapes.yaml", "arguments": {"cfg": "scratch.yaml", "plots": False}}
TARGET = 0.55  # mAP50-95 that each model must reach
MAP, MAP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"


def summarise_run(name: str, curve: list[dict[str, float]], seed: int) -> dict:
    """Summarise a run: its best epoch, its last, and when it reached the target."""
    best = max(curve, key=lambda epoch: epoch[MAP])
    model = RTDETR(f"{name}.yaml").model
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed,
        "epochs": len(curve),
        "mAP50": best[MAP50],
        "mAP50-95": best[MAP],
        "last mAP50-95": curve[-1][MAP],
        "reached": next((int(epoch["epoch"]) for epoch in curve if epoch[MAP] >= TARGET), None),
        "minutes": curve[-1]["time"] / 60,
        "curve": [epoch[MAP] for epoch in curve],
    }


def plot_curves(rows: list[dict], file: Path) -> None:
    """Draw mAP50-95 over the epochs."""
    fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        ax.plot(range(1, len(row["curve"]) + 1), row["curve"], label=row["model"])
    ax.axhline(TARGET, color="grey", lw=0.8, ls="--")
    ax.set(xlabel="epoch", ylabel="mAP50-95", ylim=(0, 1), title="shapes.yaml at 160 px, from scratch")
    ax.legend(frameon=False)
    fig.savefig(file, dpi=120)
    plt.close(fig)


def format_page(rows: list[dict]) -> str:
    """Write the page with the table."""
    lines = [
        "| model | parameters | seed | epochs | mAP50 | mAP50-95, best | last | epochs to 0.55 | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reached = row["reached"] or "–"
        lines.append(
            f"| `{row['model']}` | {row['parameters']:,} | {row['seed']} | {row['epochs']} | {row['mAP50']:.3f} | "
            f"{row['mAP50-95']:.3f} | {row['last mAP50-95']:.3f} | {reached} | {row['minutes']:.0f} |"
        )
    return f"""# What the tiny models learn

512 drawn images of `shapes.yaml` at 160 px, from scratch, with `cfg_custom/recipes/scratch.yaml`; validated on 128
others.

```sh
uv run python scripts/learn.py --save
```

{chr(10).join(lines)}

On {get_cpu_info()}, torch {torch.__version__}, ultralytics {__version__}. Times are of a shared machine. One seed a
model: differences of a few points say nothing about which is better.

![mAP50-95 over the epochs](learning.png)
"""


def save_results(rows: list[dict]) -> None:
    """Write the results, the page and its picture."""
    folder = ROOT / "benchmarks"
    (folder / "learning.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (folder / "learning.md").write_text(format_page(rows), encoding="utf-8")
    plot_curves(rows, folder / "learning.png")


def main() -> int:
    """Train the models that are not done, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="models whose name holds TEXT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning", help="folder of the runs")
    parser.add_argument("--save", action="store_true", help="write benchmarks/learning.md, .jsonl and .png")
    args = parser.parse_args()
    models = [name for name in MODELS if args.only in name]
    if not models:
        sys.exit(f"no tiny model's name holds {args.only!r}; there are {', '.join(MODELS)}")
    kept = ROOT / "benchmarks" / "learning.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    rows = {row["model"]: row for row in map(json.loads, lines)}
    for name in models:
        run = Run(name, f"{name}.yaml", args.seed, args.runs.resolve() / name)
        train_run(run, SETTINGS)
        rows[name] = summarise_run(name, read_epochs(run.trained), args.seed)
        if args.save:  # after each model, as all of them take hours
            save_results(sorted(rows.values(), key=lambda row: row["model"]))
    print(format_page([rows[name] for name in models]))
    short = [name for name in models if rows[name]["reached"] is None]
    if short:
        print(f"below {TARGET}: {', '.join(short)}")
    return len(short)


if __name__ == "__main__":
    sys.exit(main())
