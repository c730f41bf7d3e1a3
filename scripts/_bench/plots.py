"""Draw benchmark results as PNG pictures."""

from __future__ import annotations

from pathlib import Path

from _shared.pyplot import pyplot


def plot_growth(growth: list[dict], file: Path) -> None:
    """Draw time and memory against tokens, both axes logarithmic."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, key, label in zip(axes, ("ms", "MiB"), ("inference, ms", "peak memory of forward and backward, MiB")):
        for family in dict.fromkeys(row["family"] for row in growth):
            rows = [row for row in growth if row["family"] == family]
            axis.plot([row["tokens"] for row in rows], [row[key] for row in rows], marker="o", label=family)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axis.grid(True, which="both", alpha=0.2)
        axis.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_models(rows: list[dict], file: Path) -> None:
    """Draw latency against parameters."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for i, row in enumerate(rows):  # a legend, as models of a size would write over each other's names
        style = {"marker": "os^D"[i % 4], "color": f"C{i % 10}", "s": 60, "alpha": 0.8}
        axis.scatter(row["parameters"] / 1e6, row["ms"], label=row["model"], **style)
    axis.set(yscale="log", xlabel="parameters, millions", ylabel="ms at 640", title=f"fused, batch {rows[0]['batch']}")
    axis.grid(True, which="both", alpha=0.2)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_depth(results: dict, file: Path) -> None:
    """Draw mAP against latency, one line over the decoder's layers and one over the queries."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    whole = results["rows"][0]
    for key, other, below in (("decoder_layers", "num_queries", -13), ("num_queries", "decoder_layers", 6)):
        rows = [row for row in results["rows"] if row[other] == whole[other]]
        label = f"{key.replace('num_', '').replace('_', ' ')}, with {whole[other]} {other.split('_')[1]}"
        axis.plot([row["ms"] for row in rows], [row["mAP50-95"] for row in rows], marker="o", label=label)
        for row in rows:
            at = row["ms"], row["mAP50-95"]
            axis.annotate(row[key], at, textcoords="offset points", xytext=(4, below), fontsize=8)
    title = "{model} on {data} at {imgsz} px, one image, fused".format(**results)
    axis.set(xlabel="latency, ms", ylabel="mAP50-95", title=title)
    axis.set_ylim(0, 1.2 * max(row["mAP50-95"] for row in results["rows"]) or None)
    axis.grid(True, alpha=0.2)
    axis.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_deploy(rows: list[dict], file: Path) -> None:
    """Draw latency against file size, with a colour for each model and a marker for each runtime."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9.5, 6), layout="constrained")
    models, runtimes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "runtime"))
    for i, model in enumerate(models):
        for runtime, marker in zip(runtimes, "os^D*vP"):
            for row in rows:
                if (row["model"], row["runtime"]) == (model, runtime):
                    axis.scatter(row["MiB"], row["ms"], marker=marker, color=plt.cm.tab20(i % 20), s=50, alpha=0.85)
    for i, model in enumerate(models):
        axis.scatter([], [], marker="s", color=plt.cm.tab20(i % 20), label=model)
    for runtime, marker in zip(runtimes, "os^D*vP"):
        axis.scatter([], [], marker=marker, color="grey", label=runtime)
    sizes = " and ".join(str(size) for size in sorted({row["imgsz"] for row in rows}))
    axis.set(xscale="log", yscale="log", xlabel="file, MiB", ylabel="ms", title=f"one image of {sizes} px, one machine")
    axis.grid(True, which="both", alpha=0.2)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_steps(rows: list[dict], file: Path) -> None:
    """Draw the parts of a training step of each model and side as stacked bars."""
    from _bench.training_steps import STEPS

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9, 0.35 * len(rows) + 1.5), layout="constrained")
    labels = [f"{row['model']}, {row['side']}" for row in rows]
    left = [0.0] * len(rows)
    for i, part in enumerate(STEPS):
        axis.barh(labels, [row[part] for row in rows], left=left, label=part, color=plt.get_cmap("tab20")(i))
        left = [start + row[part] for start, row in zip(left, rows)]
    axis.invert_yaxis()
    axis.set(xlabel="processor time of a step, s")
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
