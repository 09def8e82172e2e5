"""The page of an experiment holds what its folder shows, and needs no other file."""

import dataclasses
import re

import matplotlib.pyplot as plt
import pytest

from experiments.common.config import Common
from experiments.common.page import write_page


@pytest.fixture
def config(tmp_path):
    (tmp_path / "table.md").write_text("| method | loss |\n|---|---|\n| a < b | 0.5 ± 0.1 |\n")
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    figure.savefig(tmp_path / "loss_by_step.png")
    plt.close(figure)
    return Common(out=tmp_path, seeds=7)


def test_the_page_shows_command_table_plot_and_options(config):
    page = write_page(config, "toy", ["--out", "a folder"]).read_text()
    assert "python -m experiments.toy --out &#x27;a folder&#x27;" in page
    assert "<td>a &lt; b</td>" in page and "<td>0.5 ± 0.1</td>" in page
    assert "loss by step</figcaption>" in page
    assert "<tr><td>seeds</td><td>7</td></tr>" in page and "<tr><td>jax</td>" in page


def test_the_page_needs_no_other_file(config):
    page = write_page(config, "toy", []).read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert [path.name for path in config.out.iterdir() if path.suffix == ".tmp"] == []


def test_a_folder_without_results_has_no_page(config, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert write_page(dataclasses.replace(config, out=empty), "toy", []) is None
