"""The site shows formulas as formulas and code as code."""

import html
import importlib.util
import types

import pytest

from tests.helpers import ROOT

pytest.importorskip("griffe")
pytestmark = pytest.mark.slow  # CI installs what builds the site before the slow tests


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name="api/run.md"):
    return types.SimpleNamespace(file=types.SimpleNamespace(src_uri=name))


def block(text):
    return f'<div class="highlight"><pre><span></span><code>{html.escape(text, quote=False)}\n</code></pre></div>'


@pytest.mark.parametrize(
    "written, shown",
    [
        ("dF/dλ ≈ B_Tᵀ c_{t+1}", "<i>dF</i>/<i>dλ</i> ≈ <i>B</i><sub><i>T</i></sub>ᵀ <i>c</i><sub><i>t</i>+1</sub>"),
        ("w <- clip(w, -1, 1)", "<i>w</i> ← clip(<i>w</i>, -1, 1)"),
        ("v = decay^{T-t} (I - αH)^k b", "decay<sup><i>T</i>-<i>t</i></sup> (<i>I</i> - <i>αH</i>)<sup><i>k</i></sup>"),
        ("min_λ F = Σ fold_in(key_t)", "min<sub><i>λ</i></sub> <i>F</i> = Σ fold_in(key<sub><i>t</i></sub>)"),
        ("w ± `max_steps` times", "<i>w</i> ± <code>max_steps</code> times"),
    ],
)
def test_formulas_of_docstrings_are_set(hooks, written, shown):
    found = hooks.on_page_content(block(written), page(), None, None)
    assert found.startswith('<div class="formula">') and shown in found


@pytest.mark.parametrize(
    "text", ["train(x, shape) -> {value: loss}", "solver = hg.OptaxSolver(adam, x_i)", ">>> hg.run(w_t)\n0.1"]
)
def test_code_is_not_a_formula(hooks, text):
    assert hooks.on_page_content(block(text), page(), None, None) == block(text)


def test_letters_below_the_line_in_sentences(hooks):
    text = "<p>c_T and ρ^K, <code>c_T</code> of is_exact, <a href='#c_T'>e^-2.</a></p>"
    shown = "<p>c<sub>T</sub> and ρ<sup>K</sup>, <code>c_T</code> of is_exact, <a href='#c_T'>e<sup>-2</sup>.</a></p>"
    assert hooks.on_page_content(text, page("guide.md"), None, None) == shown


def test_a_block_for_one_library_is_code(hooks):
    text = hooks.on_page_markdown("```python torch\nx\n```\n", page("moving.md"), {"repo_url": ""}, None)
    assert text == "```python\nx\n```\n"


def test_code_that_is_not_understood_ends_the_build(hooks):
    with pytest.raises(ValueError, match=r"moving\.md"):
        hooks.on_page_content("<p>```python two words</p>", page("moving.md"), None, None)
