"""One page that shows a finished experiment: command, setting, tables and plots, in a single file."""

import base64
import dataclasses
import shlex
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from hypergrad.ground.files import replacing

from .config import Options
from .report import environment

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
img { max-width: 100%; } figcaption { color: #666; margin-bottom: 1.5rem; } figure { margin: 0; }
"""


def write_page(config: Options, name: str, arguments: list[str]) -> Path | None:
    """Writes report.html into the output folder from its tables and plots; returns its path, or `None` without any.

    The page needs no other file: plots are inside. `arguments` are those of the command line that made the folder.
    """
    texts, plots = ((sorted(config.out.glob(kind))) for kind in ("*.md", "*.png"))
    if not texts and not plots:
        return None
    command = shlex.join(["python", "-m", f"experiments.{name}", *arguments])
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    parts = [
        f"<h1>{escape(name)}</h1>\n<pre>{escape(command)}</pre>",
        *(MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text()) for path in texts),
        *map(_figure, plots),
        f"<h2>Options</h2>\n{_definitions(options)}",
        f"<h2>Machine and versions</h2>\n{_definitions(environment())}",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(name)}</title>'
    path = config.out / "report.html"
    body = "\n".join(parts).replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    with replacing(path, shared=True) as file:
        file.write(f"<!doctype html>\n{head}\n<style>{STYLE}</style>\n{body}\n".encode())
    return path


def _figure(path: Path) -> str:
    """Returns a plot with its name in words."""
    data, words = base64.b64encode(path.read_bytes()).decode(), escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def _definitions(values: dict[str, Any]) -> str:
    """Returns a table of names and values."""
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return "<table>" + "".join(rows) + "</table>"
