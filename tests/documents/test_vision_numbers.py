"""Numbers in the sentences on images and text: they come from the published results."""

import re

import numpy as np

from experiments.publish import read

from tests.documents.pages import agree, text_of


def test_vision():
    page, tasks = "vision.md", {task: read(f"vision_{task}") for task in ("labels", "clean", "text")}
    labels, others = re.search(r"revision `(\w{7})` for wrong labels and `(\w{7})` for clean", text_of(page)).groups()
    for task, made in (("labels", labels), ("clean", others), ("text", others)):
        assert tasks[task]["environment"]["commit"].startswith(made)

    def of(task, method, name="test_error"):
        runs = sorted((run for run in tasks[task]["runs"] if run["method"] == method), key=lambda run: run["seed"])
        assert [run["seed"] for run in runs] == [0, 1, 2]
        return [run[name] for run in runs]

    ends = lambda *where: (min(of(*where)), max(of(*where)))
    spread = lambda *where: (np.mean(of(*where)), np.std(of(*where), ddof=1))
    gaps = lambda name: [one - other for one, other in zip(of("labels", name), of("labels", "oracle"), strict=True)]
    assert max(gaps("weights by loss")) < 2
    agree(page, "Weights by loss end #, # and # points above the oracle", *gaps("weights by loss"))
    agree(page, "they tell # % of the pairs", 100 * np.mean(of("labels", "weights by loss", "auc")))
    agree(page, "A weight for each example stays #, # and # points above", *gaps("example weights"))
    agree(page, "Its auc is # at best", max(of("labels", "example weights", "auc")))
    agree(page, "`by loss and all` ends at # to # %", *ends("labels", "by loss and all"))
    agree(page, "`weights and all` at # to # %", *ends("labels", "weights and all"))
    agree(page, "plain training at # to # %. In the first", *ends("labels", "plain"))
    updates = [max(of("labels", name, "updates")) for name in ("example weights", "oracle")]
    agree(page, "its networks make # updates in all, the oracle's #", *updates)
    agree(page, "cannot tell labels apart: it ends at # to # %", *ends("labels", "tpe, 25 % trials"))
    agree(page, "alone they end at # to # %", *ends("labels", "validation rows"))
    clean = [bound for name in ("plain", "online", "tune") for bound in ends("clean", name)]
    agree(page, "plain training ends at # to # %, `online` at # to # %, `tune` at # to # %", *clean)
    tpe = [ends("clean", f"tpe, {share} % trials") for share in (25, 10)]
    agree(page, "TPE at # to # % with four trials and at # to # % with ten", *tpe[0], *tpe[1])
    losses = [spread("clean", name, "test_loss") for name in ("online", "tune", "plain", "tpe, 25 % trials")]
    agree(page, "`online` has # ± # and `tune` # ± # on the test rows", *losses[0], *losses[1])
    agree(page, "plain training # ± #, TPE # ± # at best", *losses[2], *losses[3])
    assert losses[3][0] <= np.mean(of("clean", "tpe, 10 % trials", "test_loss"))

    def above(*methods, name="test_loss"):
        found = [np.subtract(of("text", method, name), of("text", method, "source")) for method in methods]
        return np.min(found), np.max(found)

    others = (*above("plain"), *above("tpe, 25 % trials", "tpe, 10 % trials"))
    agree(page, "it ends # to # nats above the source, plain training # to # and TPE # to #", *above("online"), *others)
    tuned = sorted(np.subtract(of("text", "tune", "test_loss"), of("text", "tune", "source")))
    agree(page, "`tune` ends at # and # in two seeds", *tuned[:2])
    agree(page, "choose a rate of #, and it ends at #, behind", max(of("text", "tune", "rate")), tuned[2])
    assert above("online")[1] < others[2] < others[1] < tuned[2]
    agree(page, "counts of the training lines is # to # above", *above("plain", name="counts"))
