"""Draw what an RT-DETR looks at: pictures of one model and some images.

    python scripts/explain.py best.pt photo.jpg                       all that the model has
    python scripts/explain.py rtdetr-l-FLA.yaml photo.jpg --what focusing --query 320,240
    python scripts/explain.py best.pt a.jpg b.jpg --layers 5 19 --imgsz 320

cam       LayerCAM: where the evidence for the detections is, in each of the decoder's inputs or of --layers
routing   BiFormer: the regions that the query's region attends to, in each such module
focusing  FLatten: the attention of the query before and after focusing, in each such module
field     effective receptive field: what of the input counts for the middle of each such layer

Each is a PNG file, IMAGE-cam.png and so on, MODEL-field.png for all images together; contact.png has all of them.
Layers are rows, as the model's summary numbers them; a multi-output backbone's row has several maps. The query is in
pixels of the image. Pictures of an earlier command in the same folder are overwritten. In Python, with scripts/ on the
path, `from explain import layer_cam` computes the maps as arrays.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.setdefault("YOLO_OFFLINE", "true")  # nothing here needs the network, and requests take time

from matplotlib.figure import Figure  # noqa: E402

from _explain import click_query, drawing, focusing, receptive_field, routing  # noqa: E402
from _explain.detections import allowed_classes, choose_query  # noqa: E402
from _explain.image_view import load_view  # noqa: E402
from _explain.layer_cam import draw_layer_cam, layer_cam  # noqa: E402
from _explain.network import OpenedModel, choose_sources, open_model  # noqa: E402
from ultralytics.fork.errors import Refused  # noqa: E402

MODULES = {"routing": routing.MODULE, "focusing": focusing.MODULE}
KINDS = "cam", "routing", "focusing", "field"
OWNERS = {
    "routing": "BiFormer's; rtdetr-l-Biformer, rtdetr-l-HGBlock_Biformer and rtdetr-tiny-Biformer have it",
    "focusing": "FLatten's; rtdetr-l-FLA, rtdetr-l-HGBlock_FLA and rtdetr-tiny-FLA have it",
}


def parse_point(text: str) -> tuple[float, float]:
    """Read X,Y."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected X,Y in pixels, such as 320,240") from None
    return x, y


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=style)
    parser.add_argument("model", metavar="MODEL", help="a checkpoint (.pt) or a model file (.yaml, untrained)")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")
    parser.add_argument("--what", nargs="+", choices=KINDS, help="which pictures (all that the model has)")
    query = parser.add_mutually_exclusive_group()
    query.add_argument(
        "--query",
        type=parse_point,
        metavar="X,Y",
        help="a point in pixels (the middle of the best detection, else the image's)",
    )
    query.add_argument("--click", action="store_true", help="choose the query in a window, for each image")
    parser.add_argument("--layers", nargs="+", type=int, metavar="N", help="rows to look at (the decoder's inputs)")
    parser.add_argument(
        "--imgsz", nargs="+", type=int, metavar="N", help="side of the input, or height and width (as it was trained)"
    )
    parser.add_argument("--conf", type=float, default=0.25, help="least score; if none has it, the best serves (0.25)")
    parser.add_argument("--classes", nargs="+", type=int, metavar="N", help="only detections of these classes")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (runs/explain/MODEL)")
    parser.add_argument("--small", action="store_true", help="PNG files of 256 colours, a third as large")
    args = parser.parse_args()
    if not 0 <= args.conf <= 1:
        parser.error(f"--conf {args.conf:g}: expected a score from 0 to 1")
    return args


def choose_kinds(asked: list[str] | None, opened: OpenedModel) -> list[str]:
    """Return the kinds of pictures to draw, by default all that a model has.

    Raises:
        ValueError: If the model does not have a kind that was asked for.
    """
    missing = [kind for kind, cls in MODULES.items() if not routing.module_paths(opened.net, cls)]
    for kind in asked or ():
        if kind in missing:
            raise Refused(f"{opened.name} has no {MODULES[kind].__name__} for --what {kind}: it is {OWNERS[kind]}")
    return [kind for kind in KINDS if kind in (asked or KINDS) and kind not in missing]


def name_pictures(images: list[Path]) -> list[str]:
    """Name the pictures of each image by its stem, with a number if another image has the same."""
    names: list[str] = []
    taken = {image.stem.lower() for image in images}  # some file systems ignore the case
    for image in images:
        name, n = image.stem, 1
        while name.lower() in {other.lower() for other in names} or (n > 1 and name.lower() in taken):
            n += 1
            name = f"{image.stem}-{n}"
        names.append(name)
    return names


def make_folder(out: Path | None, name: str) -> Path:
    """Create the folder for the pictures.

    Raises:
        OSError: If nothing can be written there.
    """
    out = out or Path("runs", "explain", name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as e:
        raise Refused(f"{out} cannot be written to: {e.strerror or e}") from None
    return out


def choose_queries(args: argparse.Namespace, opened: OpenedModel) -> list[tuple[float, float]]:
    """Read each image, so that an unreadable one stops this early, and return the point that its pictures explain.

    Raises:
        ValueError: If a file is not an image, or the point is outside of it.
        OSError: If one cannot be read.
    """
    points = []
    for image in args.images:
        view = load_view(image, opened)
        if args.click:
            points.append(click_query.ask_for_click(view))
        else:
            points.append(choose_query(opened, view, args.query, args.conf, args.classes))
    return points


def draw_figures(
    args: argparse.Namespace, opened: OpenedModel, what: list[str], points: list[tuple[float, float]]
) -> Iterator[tuple[str, Figure]]:
    """Draw the pictures one after the other, and yield each with its name."""
    for name, image, query in zip(name_pictures(args.images), args.images, points):
        view = load_view(image, opened)
        if "cam" in what:
            found = layer_cam(opened, view, args.layers, args.conf, args.classes)
            yield f"{name}-cam", draw_layer_cam(found, view, opened)
        if "routing" in what:
            yield f"{name}-routing", routing.draw_routing(routing.routing(opened, view, query), view, opened)
        if "focusing" in what:
            yield f"{name}-focusing", focusing.draw_focusing(focusing.focusing(opened, view, query), view, opened)
    if "field" in what:
        found = receptive_field.receptive_fields(opened, args.images, args.layers)
        yield (
            f"{opened.name}-field",
            receptive_field.draw_receptive_fields(found, opened),
        )


def explain(args: argparse.Namespace) -> None:
    """Draw and write all pictures, and print the name of each file; errors in the arguments come before the first."""
    opened = open_model(args.model, args.imgsz)
    what = choose_kinds(args.what, opened)
    choose_sources(opened.net, args.layers)
    allowed_classes(opened, args.classes)
    if not opened.trained:
        print(f"warning: {args.model} has no weights yet: the pictures show an untrained model", file=sys.stderr)
    points, pictures = choose_queries(args, opened), []
    out = make_folder(args.out, opened.name)
    for name, figure in draw_figures(args, opened, what, points):
        pictures.append(drawing.save_figure(figure, out / f"{name}.png", args.small))
        print(out / f"{name}.png", flush=True)
    drawing.save_contact_sheet(pictures, out / "contact.png", args.small)
    print(out / "contact.png")


def main() -> int:
    """Draw the pictures, or print the error in one line."""
    args = parse_arguments()
    try:
        explain(args)
    except (Refused, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
