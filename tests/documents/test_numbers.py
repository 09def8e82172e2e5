"""Numbers in the documents: tables come from results, sentences from tables, quotations from the pages they link to."""

import json
import re

import numpy as np
import pytest

from experiments.publish import TABLES, read, written

from tests.documents.pages import DOCS, agree, lines_of, rows_of, text_of
from tests.helpers import ROOT


def test_tables_are_those_of_the_results():
    pages = {page: page.read_text() for page in DOCS.rglob("*.md")}
    assert all(written(text) == text for text in pages.values())
    placed = {name for text in pages.values() for name in re.findall(r"<!-- from results/([\w-]+)\.json -->", text)}
    assert placed == {path.stem for path in (DOCS / "results").glob("*.json")}
    assert placed <= set(TABLES)


def result_pages():
    menu = (ROOT / "mkdocs.yml").read_text()
    return re.findall(r": ([\w-]+\.md)", menu[menu.index("  - Results:") : menu.index("  - Contributing:")])


@pytest.mark.parametrize("page", result_pages())
def test_result_pages_begin_with_command_commit_and_machine(page):
    """The first command comes before any other code, then the line on commit and machine, before any heading."""
    head = (DOCS / page).read_text().split("\n## ")[0]
    assert re.search(r"python -m (experiments|pytest)", head)
    made = re.search(r"\*(Made by|Made at|Numbers of)[^*]+\*", head)
    assert made and re.search(r"`[0-9a-f]{7}`", made[0]), f"{page} does not name its commit"
    assert re.search(r"\bcores\b|\bNVIDIA\b|\bdevices\b", made[0]), f"{page} does not name its machine"


def test_quoted_numbers_are_on_the_linked_pages():
    """Every number of a point of the page on when it pays is on a page that the point links to."""
    points = re.split(r"\n(?=- )|\n\n", (DOCS / "when.md").read_text())
    quoted = 0
    for point in points:
        links = re.findall(r"\]\(([\w./-]+\.md)", point)
        known = " ".join(text_of(link) for link in links)
        for number in re.findall(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", re.sub(r"\]\([^)]*\)", "", point)):
            if links and (len(number) > 2 or "." in number):
                quoted += 1
                assert re.search(rf"(?<![\d.]){re.escape(number.rstrip(','))}(?!\d)", known), (number, links)
    assert quoted > 50


def test_experiments():
    page = "experiments.md"
    learned = [rows_of(page, name)[0][0] for name in ("HOAG", "DrMAD", "greedy", "reverse, ten steps at a time")]
    best = rows_of(page, "best single variance (nine times the budget)")[0][0]
    agree(page, "The bound of the gradient methods is # times better", best / max(learned))
    at = {name: rows_of(page, name)[0] for name in ("no cleaning", "greedy with decay 0.9", "exact reverse, ten steps")}
    below = [at[name][1] - at[name][0] for name in ("no cleaning", "greedy with decay 0.9")]
    agree(page, "they are # and # points below them, two of our", *below)
    summed = [rows_of(page, name)[0] for name in ("T1-T2, summed over images", "implicit, summed over images")]
    near = [abs(row[column] - row[column + 1]) for column in (0, 2) for row in summed]
    agree(page, "within # points at noise 0.5, and within # and # points at 0.3", max(near[2:]), *near[:2])


def test_criteria():
    page = "experiments.md"
    losses = [row[2] for row in rows_of(page, "TPE, one variance per layer")[:3]]
    agree(page, "TPE's test loss is # by the bound, # by the evidence and # by held-out rows", *losses)
    single = "best single variance (nine times the budget)"
    found = [rows_of(page, label)[-1][2] for label in ("HOAG", single)]
    agree(page, "the test loss is then #, that of the best single variance #", *found)
    bound, evidence = rows_of(page, "DrMAD")[:2]
    best = rows_of(page, single)[1]
    agree(page, "the negative log evidence to #, a single variance to #", evidence[0], best[0])
    agree(page, "the test loss is # against #, larger in three seeds", evidence[2], best[2])
    agree(page, "by the bound DrMAD's is #", bound[2])
    of = lambda name, what="test_nll": {(run["method"], run["seed"]): run[what] for run in read(name)["runs"]}
    by_evidence, by_rows = of("compare_evidence"), of("compare_validation")
    hoag, reached = read("compare_evidence_hoag")["runs"], of("compare_evidence", "best_value")
    products = np.mean([run["hvps"] / run["hyper_updates"] for run in hoag])
    found = rows_of(page, "HOAG")[1]
    agree(page, "HOAG brings it to #, lower than DrMAD in three seeds of three, with # products", found[0], products)
    agree(page, "its test loss of # too", found[2])
    drmad = [run for run in read("compare_evidence")["runs"] if run["method"] == "drmad"]
    evaluations = np.mean([run["gradients"] - 3 * run["iterations"] - run["hyper_updates"] for run in drmad])
    agree(page, "DrMAD made # of them for its # hyper-steps", evaluations, drmad[0]["hyper_updates"])
    seconds = [run["seconds"] for run in hoag]
    agree(page, "HOAG took # ± # s a seed, two seeds at a time", np.mean(seconds), np.std(seconds, ddof=1))
    for run in hoag:
        assert run["best_value"] < reached["drmad", run["seed"]]
        assert run["test_nll"] > by_evidence["best_scalar", run["seed"]]
    for seed in range(3):
        assert by_evidence["drmad", seed] > by_evidence["best_scalar", seed]
        for method in ("tpe", "best_scalar"):
            assert by_evidence[method, seed] == by_rows[method, seed]


def test_peers():
    runs = {(row[0], row[1]): float(row[2]) for row in lines_of("peers.md") if row[1].startswith(("Betty", "TorchOpt"))}
    free = [runs[problem, "Betty: CG(20)"] for problem in ("P1", "P2", "P3")]
    agree("peers.md", "it would be #, # and # times ahead of torch on P1 to P3", *free)
    agree(
        "peers.md",
        "`Reverse` cannot be more than # times quicker than torch on P2",
        runs["P2", "TorchOpt: MetaSGD"] / 2,
    )


def test_short_horizon():
    page = "experiments.md"
    at = {
        name: rows_of(page, name)[0][0] for name in ("greedy, closed form", "best constant", "learned, expected loss")
    }
    assert at["learned, expected loss"] < at["best constant"] / 5 < at["greedy, closed form"] / 5
    for estimator, closed in (
        ("greedy, hg.Greedy", "greedy, closed form"),
        ("learned, hg.Reverse", "learned, expected loss"),
    ):
        assert abs(rows_of(page, estimator)[0][0] / at[closed] - 1) < 0.02


def test_proton():
    all_of = {
        seed: (row[2], row[5]) for seed, row in enumerate(rows_of("proton.md", str(seed))[0] for seed in range(3))
    }
    short = [all_of[seed][0] - all_of[seed][1] for seed in (1, 2)]
    agree("proton.md", "in the others they end # and # short", *short)
    of = lambda method, name: [run[name] for run in read("proton_population")["runs"] if run["method"] == method]
    ends = zip(of("population", "all"), of("tpe", "all"), strict=True)
    agree("proton.md", "nor with all: #, # and # are left", *(ours - theirs for ours, theirs in ends))
    course = zip(of("population", "fifth"), of("population", "all"), strict=True)
    agree("proton.md", "lowers L1 by #, # and # from what it was", *(before - after for before, after in course))
    agree("proton.md", "found with #, # and # % of its budget", *(100 * share for share in of("tpe", "share")))
    ends = {(run["method"], run["seed"]): run["all"] for run in read("proton_control")["runs"]}
    agree("proton.md", "Plain training ends at # and #, behind every search", ends["plain", 0], ends["plain", 1])
    lowest = [min(("gradient", "tpe", "random", "plain"), key=lambda method: ends[method, seed]) for seed in (0, 1)]
    assert lowest == ["tpe", "gradient"] and all(ends["plain", seed] > ends["random", seed] for seed in (0, 1))
    cosines = [1 / (1 + (noise / signal) ** 2) ** 0.5 for noise, signal in ((1.36, 0.21), (0.39, 0.16))]
    agree("proton.md", "expected cosine of one step is then # and #", *cosines)


def test_convolutions():
    own, product = (
        rows_of("training.md", "`jax.lax.conv_general_dilated`")[0],
        rows_of("training.md", "patches and a product")[0],
    )
    agree(
        "training.md",
        "the product is # times faster than XLA's convolution, and # times slower",
        own[1] / product[1],
        product[1] / own[0],
    )


def test_stochastic():
    page, rows = "training.md", read("stochastic")["rows"]
    at = {row["solver"]: row for row in rows if row["problem"] == "digits network"}
    mean, scaled, fresh, diagonal, warm = (
        at[name]
        for name in (
            "CG, mean over batches",
            "CG, mean over batches, Adam's diagonal",
            "SGD from zero (stocBiO)",
            "Adam's diagonal (SAMA)",
            "SGD, warm, 8 hyper-steps in all (AmIGO)",
        )
    )
    assert all(row["cosine"] <= mean["cosine"] for row in at.values())
    agree(page, "the largest cosine is #, of ten steps of `CG`", mean["cosine"])
    agree(page, "on fresh batches is level with it at #", fresh["cosine"])
    agree(page, "Adam's diagonal reaches # for # gradients", diagonal["cosine"], diagonal["cost"])
    agree(page, "lowers the cosine of `CG` from # to #", mean["cosine"], scaled["cosine"])
    agree(page, "for 10 of its # gradients", warm["cost"] / 8)


def test_cost():
    rows = json.loads((DOCS / "cost.json").read_text())["rows"]
    memory = {(row["problem"], row["estimator"]): row["memory_over_bare"] for row in rows}
    reversible, time = memory.pop(("P1", "Reversible")), max(row["time_over_bare"] for row in rows)
    sentence = "at most # times its time and # times its memory, for `Reversible` on P1 # times"
    agree("guide.md", sentence, time, max(memory.values()), reversible)
    for name, label in {
        "Reverse": "`Reverse`",
        "Reversible": "`Reversible`",
        "DrMAD(knots=1)": "`DrMAD(knots=1)`",
    }.items():
        runs = [row["time_over_plain"] for row in rows if row["estimator"] == name]
        shown = next(line for line in lines_of("guide.md") if line[0] == label)[2]
        least, most = map(float, re.match(r"([\d.]+) to ([\d.]+)", shown).groups())
        assert abs(least - min(runs)) < 0.06 and abs(most - max(runs)) < 0.06, (name, runs)
