"""The study of regimes: the truth of each, and that every estimator is right where it should be."""

import pytest

from experiments.regimes import run

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.mark.slow
def test_every_estimator_is_right_where_it_should_be(tmp_path):
    config = run.Config(regimes=("short unroll", "non-smooth", "chaotic"), seeds=3, out=tmp_path)
    summary = run.main(config)
    found = {(line["regime"], line["estimator"]): line for line in summary["runs"]}
    assert found["short unroll", "Reverse"]["error"] < 1e-9
    assert found["non-smooth", "Implicit"]["error"] < 1e-6
    assert found["non-smooth", "Reverse"]["error"] < 1e-6
    assert found["chaotic", "Reverse"]["error"] > 10
    assert found["chaotic", "Combined"]["error"] < 3
    assert "acts only through the optimiser" in found["chaotic", "Implicit"]["refused"]
    assert [line["regime"] for line in summary["table"]] == list(config.regimes)


def test_unknown_regimes_are_named():
    with pytest.raises(ValueError, match="regimes must be among"):
        run.Config(regimes=("fractal",))
