"""Results in the documents: finished runs are copied into docs/results, and tables of pages are written from them."""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .benchmarks.peers.page import page as peers
from .benchmarks.peers.run import Config as PeersConfig
from .benchmarks.scaling import Config as ScalingConfig
from .benchmarks.scaling import printed as printed_size
from .benchmarks.scaling import printed_slopes
from .benchmarks.stochastic import Config as StochasticConfig
from .common.report import Row, as_json, grouped, made_by, plainly, text_table, write_json
from .compare.run import Config as CompareConfig
from .proton.run import Config as ProtonConfig
from .regimes.run import Config as RegimesConfig
from .short_horizon.run import Config as ShortHorizonConfig
from .sparse.run import Config as SparseConfig
from .study.plots import WORDS
from .study.run import Config as StudyConfig
from .study.sweeps import SIZES
from .study.sweeps import Config as SweepsConfig
from .tabular import page as tabular
from .tabular.run import Config as TabularConfig
from .vision import page as vision
from .vision.run import Config as VisionConfig

DOCS = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(<!-- from results/([\w-]+)\.json -->\n).*?(<!-- end -->)", re.S)
IN_WORDS = WORDS | {
    "reverse": "reverse, ten steps at a time",
    "best_scalar": "best single variance (nine times the budget)",
    "tpe": "TPE, one variance per layer",
    "random": "random, one variance per weight",
}


STUDY = {
    "Q": "Q",
    "updates": "iterations",
    "accuracy": "E",
    "with noise 0.25": "E_0.25",
    "with noise 0.5": "E_0.5",
}
MEASURES = {"elbo": "negative ELBO", "evidence": "negative log evidence", "validation": "validation loss"}


def in_words(line: Row) -> str:
    """Returns the method of a line."""
    return str(IN_WORDS.get(line["method"], line["method"]))


def in_figures(table: list[Row]) -> list[Row]:
    """Returns a table whose numbers have no exponents, which those of older runs have."""
    plain = lambda value: plainly(value) if isinstance(value, str) else value
    return [{name: plain(value) for name, value in line.items()} for line in table]


def columns_of(result: Row, first: Callable[[Row], Row], columns: dict[str, str]) -> str:
    """Returns the table of a result: what `first` gives of a line, then columns of it by their headings."""
    return text_table(
        [{**first(line), **{head: line[name] for head, name in columns.items()}} for line in result["table"]]
    )


def compare(result: Row) -> str:
    """Returns the table of the main job, under one of its criteria."""
    measure = MEASURES[result["config"]["criterion"]]
    columns = {measure: "best_value", "test accuracy": "test_accuracy", "test loss": "test_nll"}
    return columns_of(result, lambda line: {"method": in_words(line)}, columns)


def short_horizon(result: Row) -> str:
    """Returns the expected losses of the schedules."""
    columns = {"expected loss": "final_loss", "first rate": "first_rate", "largest rate": "largest_rate"}
    return columns_of(result, lambda line: {"method": line["method"]}, columns)


def scaling(result: Row) -> str:
    """Returns the slopes of growth, and then all sizes."""
    sizes = text_table([printed_size(row) for row in result["rows"]])
    return f"{text_table(printed_slopes(result['slopes']))}\n\n{sizes}"


def stochastic(result: Row) -> str:
    """Returns the cosines of every linear solver on each problem, and what a solve cost there."""

    def shown(row: Row) -> str:
        spread = row["spread"]
        return f"{row['cosine']:.3f} ± {spread:.3f}" if spread >= 5e-4 else f"{row['cosine']:.5f}"

    def line(rows: list[Row]) -> Row:
        costs = dict.fromkeys(f"{row['cost']:.0f}" for row in rows)
        return {"solver": rows[0]["solver"]} | {row["problem"]: shown(row) for row in rows} | {"cost": ", ".join(costs)}

    return text_table([line(rows) for rows in grouped(result["rows"], ("solver",))])


def proton(result: Row) -> str:
    """Returns the lowest L1 of every search with a part of its budget, seed by seed."""
    shown = lambda value, form: "-" if value is None else format(value, form)
    return text_table(
        [
            {"search": run["method"], "seed": run["seed"]}
            | {head: shown(run[name], ".3f") for head, name in (("1/5", "fifth"), ("1/2", "half"), ("all", "all"))}
            | {"share to TPE's lowest": shown(run["share"], ".0%")}
            for run in result["runs"]
        ]
    )


def sparse(result: Row) -> str:
    """Returns what every method found on every task, and then what it cost."""
    criterion = {"validation": "held-out loss", "cv": "loss of the folds"}[result["config"]["criterion"]]
    found = {"log-penalty": "log_penalty", criterion: "loss", "test loss": "test_loss", "not zero": "nonzero"}
    cost = {
        "gradients to the grid's best": "gradients_to_grid",
        "seconds to it": "seconds_to_grid",
        "seconds in all": "seconds",
        "above the lowest, at equal gradients": "above_at_gradients",
        "at equal time": "above_at_seconds",
    }
    first = lambda line: {"task": line["task"], "method": line["method"]}
    return "\n\n".join(columns_of(result, first, columns) for columns in (found, cost))


def regimes(result: Row) -> str:
    """Returns error and cost of every estimator in every regime."""
    return text_table(result["table"])


def study(result: Row) -> str:
    """Returns the tables of the study for one data set and criterion, one for each budget."""
    columns = STUDY | {"gradients": "gradients"}
    tables = [{"table": lines} for lines in grouped(in_figures(result["table"]), ("budget",))]
    return "\n\n".join(columns_of(table, lambda line: {"": in_words(line)}, columns) for table in tables)


def study_of_images(result: Row) -> str:
    """Returns the table of the study on MNIST, with seconds, beside the published numbers."""
    beside = {"seconds": "seconds", "published Q": "published_Q", "published accuracy": "published_E"}
    table = {"table": in_figures(result["table"])}
    return columns_of(table, lambda line: {"": in_words(line)}, STUDY | beside)


def sweeps(result: Row) -> str:
    """Returns Q of every method by the number of hyperparameters, and then by the updates of the weights per move."""

    def points(sweep: str, first: Callable[[Row], Row]) -> str:
        lines = grouped([line for line in in_figures(result["table"]) if line["sweep"] == sweep], ("value",))
        named = lambda line: WORDS.get(line["method"], line["method"])
        return text_table([first(at[0]) | {named(line): line["Q"] for line in at} for at in lines])

    number = lambda line: {"hyperparameters": f"{line['hyperparameters']}, {SIZES[line['value']]}"}
    every = lambda line: {"hyper-update after": f"{line['value']} updates"}
    return f"{points('groups', number)}\n\n{points('periods', every)}"


TABLES: dict[str, Callable[[Row], str]] = {
    "compare": compare,
    "regimes": regimes,
    "compare_evidence": compare,
    "compare_evidence_hoag": compare,
    "compare_validation": compare,
    "proton": proton,
    "proton_control": proton,
    "proton_population": proton,
    "peers": peers,
    "scaling": scaling,
    "short_horizon": short_horizon,
    "sparse": sparse,
    "sparse_cv": sparse,
    "sparse_cv_generated": sparse,
    "sparse_large": sparse,
    "stochastic": stochastic,
    "study_digits": study,
    "study_mnist": study_of_images,
    "study_small": study,
    "study_small_plain": study,
    "study_sweeps": sweeps,
    "study_wisdm": study,
    "tabular": tabular.errors_and_counts,
    "tabular_criteria": tabular.errors_and_counts,
    "tabular_full": tabular.full,
    "tabular_layers": tabular.over_one_per_layer,
    "tabular_rates": tabular.errors_and_counts,
    "tabular_weights": tabular.over_one_per_layer,
    "vision_labels": vision.images,
    "vision_clean": vision.images,
    "vision_text": vision.text,
}
BENCHMARKS = {  # each with its result in a file of its own name
    "peers": PeersConfig(),
    "scaling": ScalingConfig(),
    "stochastic": StochasticConfig(),
}
MODULES = {name: f"benchmarks.{name}" for name in BENCHMARKS}
MODULES |= {"short_horizon": "short_horizon", "study_sweeps": "study.sweeps"}
USUAL = {MODULES[name]: config for name, config in BENCHMARKS.items()}
USUAL |= {"compare": CompareConfig(), "proton": ProtonConfig(), "sparse": SparseConfig(), "study": StudyConfig()}
USUAL |= {"study.sweeps": SweepsConfig(), "tabular": TabularConfig(), "regimes": RegimesConfig()}
USUAL |= {"short_horizon": ShortHorizonConfig(), "vision": VisionConfig()}
UNSAID = ("out", "data_dir", "cache", "jobs")  # options that change no result
PARTS = ("environment", "table", "runs", "rows", "slopes", "missing", "counts")  # of summaries, those that are kept


def command(name: str, options: Row) -> str:
    """Returns the command of a result, with the options that are not the default."""
    module = MODULES.get(name, name.partition("_")[0])
    usual = as_json(USUAL[module])
    words = lambda value: shlex.join(map(str, value if isinstance(value, list) else [value]))
    changed = {option: value for option, value in options.items() if value != usual.get(option)}
    flag = lambda option: f" --{option.replace('_', '-')}"
    given = [flag(key) if value is True else f"{flag(key)} {words(value)}" for key, value in changed.items()]
    return f"python -m experiments.{module}{''.join(given)}"


def read(name: str) -> Row:
    """Returns what was published of an experiment."""
    found: Row = json.loads((DOCS / "results" / f"{name}.json").read_text())
    return found


def written(page: str) -> str:
    """Returns the text of a page with its tables written from the results."""

    def table(match: re.Match[str]) -> str:
        result = read(match[2])
        made = made_by(result["command"], result["environment"])
        return f"{match[1]}\n{made}\n\n{TABLES[match[2]](result)}\n\n{match[3]}"

    return PLACE.sub(table, page)


def publish(folder: Path) -> None:
    """Copies the summary of a finished run into docs/results, without its curves."""
    benchmark = next((name for name in BENCHMARKS if (folder / f"{name}.json").exists()), None)
    path = folder / f"{benchmark or 'summary'}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: {folder} is not the output folder of a finished run")
    try:
        summary: Row = json.loads(path.read_text())
        name = benchmark or Path(summary["config"]["out"]).name
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{path} is no summary of a run: {type(error).__name__}: {error}") from None
    if name not in TABLES:
        raise SystemExit(f"no page has a table of {name!r}; known are {', '.join(TABLES)}")
    options = {option: value for option, value in summary["config"].items() if option not in UNSAID}
    kept: dict[str, Any] = {"command": command(name, options), "config": options}
    kept |= {part: summary[part] for part in PARTS if part in summary}
    (DOCS / "results").mkdir(exist_ok=True)
    write_json(DOCS / "results" / f"{name}.json", kept)
    if benchmark and (folder / f"{name}.png").exists():
        shutil.copyfile(folder / f"{name}.png", DOCS / "images" / f"{name}.png")


def main(folders: list[str]) -> None:
    """Publishes finished runs, by their output folders, and writes the tables of all pages."""
    for folder in folders:
        publish(Path(folder))
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text()
        if (after := written(before)) != before:
            page.write_text(after)
            print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=__doc__)
    parser.add_argument("folders", nargs="*", help="output folders of finished runs; without one, tables alone")
    main(parser.parse_args().folders)
