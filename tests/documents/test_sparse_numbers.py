"""Sentences about sparse models against the results that they are of."""

import numpy as np

from experiments.publish import read

from tests.documents.pages import agree


def splits_of(name):
    """The published runs by task and seed, of each split by method."""
    found = {}
    for run in read(name)["runs"]:
        found.setdefault((run["task"], run["seed"]), {})[run["method"]] = run
    return found


def shares_to_grid(splits, method):
    """Gradients until the grid's best, in percent of the grid's, of the splits where a method came there."""
    reached = [at for at in splits if at[method]["gradients_to_grid"] is not None]
    return [100 * at[method]["gradients_to_grid"] / at["grid"]["gradients"] for at in reached]


def splits_ahead(splits, method, unit):
    """The splits in which hypergradients are lower at equal cost, and those that a method takes part in."""
    known = [at for at in splits if method in at]
    other = [at[method][f"above_at_{unit}"] for at in known]
    mine = [at["hypergradient"][f"above_at_{unit}"] for at in known]
    return sum(b is None or a < b for a, b in zip(mine, other, strict=True)), len(known)


def test_sparse():
    page, runs = "sparse.md", splits_of("sparse")
    splits = list(runs.values())
    found, others = shares_to_grid(splits, "hypergradient"), [shares_to_grid(splits, m) for m in ("random", "TPE")]
    sentence = "in # of # splits, after # to # % of the grid's gradients (median # %)"
    agree(page, sentence, len(found), len(splits), min(found), max(found), np.median(found))
    agree(page, "Random search with all of them does so in #, TPE in #", *map(len, others))
    methods = ("grid", "random", "TPE")
    ahead = {unit: [splits_ahead(splits, m, unit)[0] for m in methods] for unit in ("gradients", "seconds")}
    agree(page, "below the grid in #, random search in # and TPE in # of the splits", *ahead["gradients"])
    agree(page, "at equal time in #, # and #", *ahead["seconds"])
    agree(page, "below celer in # of #", *splits_ahead(splits, "celer", "seconds"))
    own = [at for at in splits if "one penalty per feature" in at]
    lower = sum(at["one penalty per feature"]["loss"] < at["hypergradient"]["loss"] for at in own)
    agree(page, "lowers the held-out loss in # of # splits", lower, len(own))
    single = [(task, at) for (task, _), at in runs.items() if task != "elastic net"]
    spacing = lambda task: (4 if "support" in task else 2) * np.log(10) / 99
    distance = lambda at: abs(at["hypergradient"]["log_penalty"] - at["grid"]["log_penalty"])
    spacings = [distance(at) / spacing(task) for task, at in single]
    near = sum(value <= 1.0001 for value in spacings)
    agree(page, "at most one spacing of the grid in # of # splits; the largest is #", near, len(single), max(spacings))
    seconds = lambda method: [at[method]["seconds"] for (task, _), at in runs.items() if task == "lasso"]
    values = [end(seconds(m)) for m in ("LassoCV", "celer", "grid", "hypergradient") for end in (min, max)]
    agree(page, "`LassoCV` took # to # s, celer # to # s, the grid # to # s and hypergradients # to # s", *values)


def test_sparse_by_cross_validation():
    splits = list(splits_of("sparse_cv").values())
    found = shares_to_grid(splits, "hypergradient")
    others = [len(shares_to_grid(splits, method)) for method in ("random", "TPE")]
    sentence = (
        "best loss in # of # splits here, with # to # % of its gradients; random search with all of them in #, TPE in #"
    )
    agree("sparse.md", sentence, len(found), len(splits), min(found), max(found), *others)


def test_sparse_on_generated_rows_by_cross_validation():
    page, runs = "sparse.md", splits_of("sparse_cv_generated")
    splits = list(runs.values())
    shares = shares_to_grid(splits, "hypergradient")
    others = [len(shares_to_grid(splits, method)) for method in ("random", "TPE")]
    sentence = "on generated rows in # of # splits, with # to # % of its gradients"
    agree(page, sentence, len(shares), len(splits), min(shares), max(shares))
    agree(page, "random search with all of them does so in #, TPE in #. One penalty", *others)
    own = [at for at in splits if "one penalty per feature" in at]
    lower = lambda name: sum(at["one penalty per feature"][name] < at["hypergradient"][name] for at in own)
    sentence = "lowers the loss of the folds in # of # splits and the test loss in #"
    agree(page, sentence, lower("loss"), len(own), lower("test_loss"))
    grids = [
        [at["grid"]["gradients"] for (task, _), at in found.items() if task == "lasso"]
        for found in (runs, splits_of("sparse"))
    ]
    ends = [end(values) for values in grids for end in (min, max)]
    agree(page, "A grid for the lasso takes # to # gradients here", *ends[:2])
    agree(page, "first table (revision `3b58e94`), now # to #,", *ends[2:])


def test_sparse_on_larger_sets():
    page, splits = "sparse.md", list(splits_of("sparse_large").values())
    shares = shares_to_grid(splits, "hypergradient")
    others = [len(shares_to_grid(splits, method)) for method in ("random", "TPE")]
    sentence = (
        "in # of # splits of both sets, with # to # % of its gradients; random search with all of them in #, TPE in #"
    )
    agree(page, sentence, len(shares), len(splits), min(shares), max(shares), *others)
    lower = lambda name: sum(at["one penalty per feature"][name] < at["hypergradient"][name] for at in splits)
    sentence = "lowers the held-out loss in # of # splits, the test loss in #"
    agree(page, sentence, lower("loss"), len(splits), lower("test_loss"))
