"""The comparison with other libraries: one that fails is left out by name, the others are measured."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import bare, by_problem
from experiments.benchmarks.peers import page, run, with_jax
from experiments.benchmarks.peers.networks import NETWORKS


@pytest.fixture(autouse=True)
def in_single_precision():
    with jax.enable_x64(False):
        yield


def absent():
    raise ModuleNotFoundError("No module named 'nobodys_library'")


@pytest.mark.slow
def test_a_peer_that_is_absent_is_left_out_by_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(by_problem.os, "environ", {})
    peers = lambda case: {
        "JAX: lax.scan": lambda: with_jax.by_hand(case, bare.reverse_unrolled),
        "nobody: exact": absent,
    }
    monkeypatch.setattr(run, "available", peers)
    run.main(run.Config(problems=("P3",), quick=True, out=tmp_path))
    printed = capsys.readouterr().out
    assert "nobody: exact is left out: ModuleNotFoundError: No module named 'nobodys_library'" in printed
    scan, nobody = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert scan["relative_error"] < 1e-5 and scan["time_over_plain"] > 0 and scan["bytes"] > 0
    assert "nobodys_library" in nobody["error"] and "time_over_plain" not in nobody
    assert (tmp_path / "peers.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_hypergradient_of_the_plain_scan(name):
    case = NETWORKS[name](0, num_steps=3)
    peers = with_jax.peers(case)
    ours, scan = (peers[one]() for one in ("ours: Reverse(remat=False)", "JAX: lax.scan"))
    found, expected = (peer.vector(peer.call()) for peer in (ours, scan))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert np.linalg.norm(expected) > 0


def test_the_quickest_others_stand_beside_the_quickest_of_ours():
    row = lambda peer, runs, exact=True: {"problem": "P1", "peer": peer, "time_over_plain": runs, "exact": exact}
    rows = [row("ours: a", 4.0), row("ours: b", 2.0), row("JAX: scan", 1.0)]
    rows += [row("torch: c", 8.0), row("higher: d", 6.0)]
    rows += [row("Betty: CG(20)", 1.0, exact=False), {"problem": "P1", "peer": "jaxopt: e", "error": "none"}]
    (line,) = page.beside(rows)
    assert line["ours"] == "b" and line["runs"] == "2.00" and line["by hand"] == "0.50, JAX: scan"
    assert line["libraries on JAX"] == "-" and line["torch"] == "3.00, higher: d"
