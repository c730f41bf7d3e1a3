"""Show a study that is running as a page on this machine: which runs are over, where the others are, and their curves.

The page is served on the loopback interface, to requests that name it, and nothing can be changed by it.
"""

from __future__ import annotations

import base64
import html
import http.server
import json
from pathlib import Path
from typing import Any

from _compare import figures
from _compare.study_folder import STUDY, Run, Study, read_json
from _compare.training_run import read_epochs
from ultralytics.fork.errors import Refused

HOSTS = "127.0.0.1", "localhost"
SECONDS = 10  # between two looks of the page
METRIC = "metrics/mAP50-95(B)"
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="{seconds}"><link rel="icon" href="data:,">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #c8ccd2; text-align: left; }}
img {{ max-width: 100%; }}</style></head><body><main><h1>{title}</h1>"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def list_studies(folder: Path) -> list[Path]:
    """List the folders of studies in a folder: itself, or those of its data sets.

    Raises:
        Refused: If there is none.
    """
    found = [file.parent for file in (folder / STUDY, *sorted(folder.glob(f"*/{STUDY}"))) if file.is_file()]
    found = [one for one in found if "settings" in (read_json(one / STUDY) or {})]
    if not found:
        raise Refused(f"--watch {folder}: there is no study; name the --out of one that has begun")
    return found


def describe_run(run: Run) -> tuple[str, str, str, str]:
    """Describe a run: its model, its seed, where it is, and the mAP50-95 of its last epoch or of its end."""
    curve, outcome = read_epochs(run.trained), run.outcome
    if outcome and outcome["state"] == "done":
        return run.label, str(run.seed), "done", f"{100 * outcome['figures']['mAP50-95']:.1f}"
    if outcome:
        return run.label, str(run.seed), f"failed: {outcome['error']}", "–"
    if not curve:
        return run.label, str(run.seed), "waits", "–"
    value = curve[-1].get(METRIC)
    return run.label, str(run.seed), f"epoch {len(curve)}", "–" if value is None else f"{100 * value:.1f}"


def make_page(folder: Path) -> str:
    """Make the page of the studies in a folder."""
    parts = [HEAD.format(title=html.escape(folder.name), seconds=SECONDS)]
    for place in list_studies(folder):
        study = Study(place, json.loads((place / STUDY).read_text(encoding="utf-8"))["settings"])
        rows = [describe_run(run) for run in study.runs]
        done = sum(row[2] == "done" for row in rows)
        parts.append(f"<h2>{html.escape(place.name)}: {done} of {len(rows)} runs are over</h2><table>")
        parts.append("<tr><th>model</th><th>seed</th><th>state</th><th>mAP50-95</th></tr>")
        parts += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        parts.append("</table>")
        svg = figures.plot_curves(study, study.labels, METRIC)
        if svg:
            data = base64.b64encode(svg.encode()).decode()
            parts.append(f'<img alt="mAP50-95 of each epoch" src="data:image/svg+xml;base64,{data}">')
    return "".join([*parts, "</main></body></html>"])


def make_server(folder: Path, port: int) -> http.server.HTTPServer:
    """Make a server of the page; port 0 is any free one.

    Raises:
        Refused: If there is no study.
    """
    list_studies(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in HOSTS or self.path != "/":  # a name of another's that leads here
                self.send_error(404)
                return
            try:
                page = make_page(folder).encode()
            except Refused as e:
                self.send_error(503, str(e).encode("ascii", "replace").decode())
                return
            self.send_response(200)
            for key, value in (("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", POLICY)):
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing of each request."""

    return http.server.HTTPServer((HOSTS[0], port), Handler)


def watch(folder: Path, port: int) -> None:
    """Serve the page until it is stopped."""
    with make_server(folder, port) as server:
        print(f"http://{HOSTS[0]}:{server.server_address[1]}/ shows {folder}; Ctrl-C ends it", flush=True)
        server.serve_forever()
