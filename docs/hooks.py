"""Makes the README the first page of the site, mends links, shows captions, and finds arguments of Equinox modules."""

import importlib
import inspect
import re
from pathlib import Path

import equinox as eqx
import griffe

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")
IMAGES = re.compile(r"<p>((?:<img [^>]*>\s*)+)</p>")  # paragraphs of images alone
IMAGE = re.compile(r'<img alt="([^"]+)"[^>]*>')


def on_page_markdown(markdown, page, config, files):
    """Returns the text of a page with its links as the site needs them."""
    if page.file.src_uri == "index.md":
        markdown = re.sub(r"\]\((?!https?:)(?!docs/)", "](../", (ROOT / "README.md").read_text()).replace(
            "](docs/", "]("
        )
    markdown = markdown.replace("](../README.md)", "](index.md)")
    if "/" in page.file.src_uri:  # ../ stays inside the documents there
        return markdown
    return OUTSIDE.sub(lambda match: f"]({config['repo_url']}/blob/main/{match[1]})", markdown)


def on_page_content(html, page, config, files):
    """Returns the page with the words that stand for a figure shown below it, as its caption."""
    caption = lambda image: f"<figure>{image[0]}<figcaption>{image[1]}</figcaption></figure>"
    return IMAGES.sub(lambda images: IMAGE.sub(caption, images[1]), html)


def parameter(one):
    """Returns a parameter for the page: its name, and its default where that is short."""
    default = None if one.default is one.empty else repr(one.default)
    if default is not None and (len(default) > 30 or "<" in default):
        default = "..."
    return griffe.Parameter(one.name, kind=griffe.ParameterKind[one.kind.name.lower()], default=default)


class Signatures(griffe.Extension):
    """The arguments of Equinox modules, whose `__init__` exists only when they are imported."""

    def on_class(self, *, cls, **kwargs):
        """Adds `__init__` to a module that does not write one."""
        found = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if not (inspect.isclass(found) and issubclass(found, eqx.Module)) or "__init__" in cls.members:
            return
        parameters = [parameter(one) for one in inspect.signature(found).parameters.values()]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
