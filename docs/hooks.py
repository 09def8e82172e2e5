"""Makes the README the first page of the site, mends links, shows captions, sets formulas, finds arguments."""

import ast
import html
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
FENCE = re.compile(r"^( *```\w+) [\w-]+$", re.M)  # the second word is for the tests: the package that the block needs
LITERAL = re.compile(r"(<(pre|code|script|style|h\d|svg)\b.*?</\2>|<[^>]*>)", re.S)  # where no formula is
BLOCK = re.compile(r'<div class="highlight"><pre><span></span><code>([^<]*)</code></pre></div>')  # not of a language
ABOVE = re.compile(r"\^(?:\{([^{}]*)\}|\(([^()]*)\)|(-?[\w/]+(?:\.\d+)?))")
BELOW = re.compile(r"(?<![A-Za-z_])([^\W\d_]\u0304?|[∂∇‖])_(?:\{([^{}]*)\}|([A-Za-z0-9α-ω]{1,3})(?![A-Za-z_]))")
NAMED = re.compile(r"([A-Za-z]{2})_([a-zλ]{1,2})(?![A-Za-z_(])")  # data_r, argmin_w
LETTER = re.compile(r"(?<![A-Za-zα-ω])(d?[A-Za-zα-ωΛΦ]\u0304?|[α-ωΛ][A-Z])(?![A-Za-zα-ωΛ])")
SIGNS = {"&lt;=": "≤", "&gt;=": "≥", "&lt;-": "←"}


def on_page_markdown(markdown, page, config, files):
    """Returns the text of a page with its links as the site needs them."""
    if page.file.src_uri == "index.md":
        markdown = re.sub(r"\]\((?!https?:)(?!docs/)", "](../", (ROOT / "README.md").read_text()).replace(
            "](docs/", "]("
        )
    markdown = FENCE.sub(r"\1", markdown.replace("](../README.md)", "](index.md)"))
    if "/" in page.file.src_uri:  # ../ stays inside the documents there
        return markdown
    return OUTSIDE.sub(lambda match: f"]({config['repo_url']}/blob/main/{match[1]})", markdown)


def on_page_content(text, page, config, files):
    """Returns the page with captions below its figures and with formulas set as such."""
    if "```" in text:
        raise ValueError(f"{page.file.src_uri}: a block of code is not closed, or its first line is not understood")
    caption = lambda image: f"<figure>{image[0]}<figcaption>{image[1]}</figcaption></figure>"
    text = IMAGES.sub(lambda images: IMAGE.sub(caption, images[1]), text)
    text = BLOCK.sub(formula, text) if page.file.src_uri.startswith("api/") else text
    parts = LITERAL.split(text)  # text, what is literal, its tag, text, ...
    return "".join(part if place % 3 else scripts(part) for place, part in enumerate(parts) if place % 3 != 2)


def formula(block):
    """Returns a block of a docstring set as a formula, unless it is code."""
    if is_code(html.unescape(block[1])):
        return block[0]
    text = block[1].rstrip("\n")
    for typed, sign in SIGNS.items():
        text = text.replace(typed, sign)
    parts = text.split("`")
    found = (f"<code>{part}</code>" if place % 2 else italic(part) for place, part in enumerate(parts))
    return f'<div class="formula">{"".join(found)}</div>'


def is_code(lines):
    """Returns whether lines are a session, signatures, or Python; `w <- -w` is a formula all the same."""
    if lines.startswith(">>>") or "->" in lines:
        return True
    try:
        ast.parse(lines)
    except SyntaxError:
        return False
    return "<-" not in lines


def italic(text):
    """Returns a formula with its letters in italics, words as they are, and what is above or below the line."""
    parts = re.split(r"(&\w+;|<[^>]*>)", NAMED.sub(r"\1<sub>\2</sub>", scripts(text)))
    return "".join(part if place % 2 else LETTER.sub(r"<i>\1</i>", part) for place, part in enumerate(parts))


def scripts(text):
    """Returns plain text with x_i and x^k as HTML shows them; names of several letters with an underscore stay."""
    inside = lambda match, first: next(part for part in match.groups()[first:] if part is not None)
    text = ABOVE.sub(lambda match: f"<sup>{inside(match, 0)}</sup>", text)
    return BELOW.sub(lambda match: f"{match[1]}<sub>{inside(match, 1)}</sub>", text)


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
