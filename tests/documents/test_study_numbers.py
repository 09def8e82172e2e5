"""Numbers of the page on the study are those of its tables and results."""

import numpy as np

from experiments.common.report import grouped
from experiments.publish import read
from experiments.study.report import compare
from experiments.study.sweeps import SIZES

from tests.documents.pages import agree, rows_of


def test_study():
    page, gradients = "study.md", ("greedy", "DrMAD", "HOAG", "reverse", "DrMAD, 5 knots", "random, then greedy")
    at = {name: rows_of(page, name) for name in (*gradients, "random search", "TPE, one per layer", "exact optimum")}

    def gains(table, column, over="random search"):
        known = [at[name][table][column] for name in gradients if at[name][table][column] is not None]
        return [value - at[over][table][column] for value in known]

    ends = lambda *where: (min(gains(*where)), max(gains(*where)))
    agree(page, "by # to # (± 8 at most) nats on digits, # to # (± 44) on WISDM", *ends(0, 2), *ends(0, 4))
    agree(page, "at equal gradients by #, # and", *(min(gains(1, column)) for column in (2, 4)))
    cv = (*ends(0, 3), *ends(0, 3, "TPE, one per layer"), *ends(0, 5), *ends(0, 5, "TPE, one per layer"))
    agree(page, "digits by # to # (± 5) and # to # (± 75) nats, WISDM by # to # (± 50) and # to # (± 28)", *cv)
    share = [100 * gains(0, column)[number] / gains(0, column)[0] for column in (2, 4) for number in (1, 2)]
    agree(page, "are # and # % of greedy's on digits, # and # % on WISDM", *share)
    random, best = at["random search"][0], at["exact optimum"][0]
    agree(page, "They are # nats above random search", at["greedy"][0][0] - random[0])
    agree(page, "solved exactly, is # nats below", best[0] - rows_of(page, "random, each draw exact")[0][0])
    of_greedy = [100 * (value - random[4]) / (at["greedy"][0][4] - random[4]) for value in (-1648, -1681)]
    agree(page, "they end at -1648 and -1681, # and # %", *of_greedy)


def test_study_of_small_mnist():
    runs = read("study_small")["runs"]
    claims = {
        budget: compare([run for run in runs if run["budget"] == budget]) for budget in ("iterations", "gradients")
    }
    gains, least = (
        {claim["method"]: claim for claim in claims[budget] if claim["method"] in ("greedy", "drmad", "hoag")}
        for budget in claims
    )
    above = {name: claim["above_random"] for name, claim in gains.items()}
    error = max(claim["above_random_error"] for claim in gains.values())
    agree("study.md", "# to # (± #) on small MNIST (below)", min(above.values()), max(above.values()), error)
    shares = [100 * above[name] / above["greedy"] for name in ("drmad", "hoag")]
    agree("study.md", "on WISDM, # and # % on small MNIST", *shares)
    agree("study.md", "and # at least", min(claim["above_random"] for claim in least.values()))
    ahead = [above[name] - above["greedy"] for name in ("drmad", "hoag")]
    agree("study.md", "ahead of greedy here, by # and # nats at equal updates", *ahead)
    table = read("study_small")["table"] + read("study_small_plain")["table"]
    bound = {(line["budget"], line["method"]): float(line["Q"].split(" ")[0]) for line in table}
    behind = lambda name: [bound[budget, name] - bound[budget, "plain"] for budget in claims]
    ends = [*zip(*map(behind, ("greedy", "drmad", "hoag")), strict=True)]
    agree("study.md", "It ends # to # nats below the gradient methods at equal updates", min(ends[0]), max(ends[0]))
    agree("study.md", "and # to # at equal gradients: level with random search", min(ends[1]), max(ends[1]))
    agree("study.md", "and # and # below TPE", *behind("tpe"))


def test_study_of_digits():
    bound = {line["method"]: float(line["Q"].split(" ")[0]) for line in read("study_digits")["table"]}
    gradients = [bound[name] for name in ("greedy", "drmad", "hoag", "reverse", "drmad_knots", "random_greedy")]
    behind = sorted(value - bound["plain"] for value in gradients)
    agree("study.md", "and # to # nats below the gradient methods", behind[0], behind[-1])
    assert bound["plain"] > bound["random"]
    before = {name: rows_of("study.md", name)[0][2] for name in ("greedy", "DrMAD", "HOAG", "TPE, one per layer")}
    now = [bound[name] for name in ("greedy", "drmad", "hoag", "tpe")]
    np.testing.assert_allclose(list(before.values()), now, atol=1)


def test_study_of_wisdm():
    found = {line["method"]: float(line["Q"].split(" ")[0]) for line in read("study_wisdm")["table"]}
    rivals = [found.pop(name) for name in ("random", "tpe", "plain")]
    gaps = [value - rival for value in found.values() for rival in rivals]
    agree("study.md", "Every gradient method ends # to # nats above random search, TPE", min(gaps), max(gaps))


def test_study_sweeps():
    runs = read("study_sweeps")["runs"]
    by = {mine[0]["value"]: mine for mine in grouped(runs, ("sweep", "value"))}
    above = [claim for value in SIZES for claim in compare(by[value]) if claim["method"] == "greedy"]
    gains = [claim[name] for claim in above for name in ("above_random", "above_random_error")]
    agree("study.md", "Greedy ends # ± #, # ± #, # ± # and # ± # nats above random search", *gains)
    mean = lambda value, method: np.mean([run["Q"] for run in by[value] if run["method"] == method])
    greedy, random = mean("weights", "greedy"), mean("weights", "random")
    few = [mean(100, name) for name in ("drmad", "hoag")]
    shares = [100 * (value - random) / (greedy - random) for value in few]
    agree("study.md", "they end at # and #, # and # % of greedy's gain", *few, *shares)
    values = [mean(value, "greedy") for value in SIZES]
    assert values == sorted(values)
    level = [mean(*point) for point in ((10, "drmad"), (10, "hoag"), (25, "drmad"), (25, "hoag"), (5, "drmad"))]
    np.testing.assert_allclose(level, greedy, atol=30)  # less than the standard error of each
