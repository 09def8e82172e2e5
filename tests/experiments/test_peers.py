"""The comparison with other libraries: one that fails is left out by name, the others are measured."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import bare
from experiments.benchmarks.peers import run, with_jax
from experiments.benchmarks.peers.networks import NETWORKS


@pytest.fixture(autouse=True)
def in_single_precision():
    with jax.enable_x64(False):
        yield


def absent():
    raise ModuleNotFoundError("No module named 'nobodys_library'")


def test_a_peer_that_is_absent_is_left_out_by_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run.os, "environ", {})
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
