"""Figures written by hand beside a record are those of the record."""

import json
import re
import runpy
from functools import partial
from pathlib import Path

import pytest

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.statistics import difference_text, differences_to, mean_interval
from transformer_dropout.compare.tuning.space import read_methods, refuse_values
from transformer_dropout.compare.verdicts import differences
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import load_run_config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BLOCKS = EXPERIMENTS / "block_dropout"


def words(page):
    """Return a page without its commands."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_losses_told_of_fine_tuning_are_in_its_tables():
    folder = EXPERIMENTS / "fine_tuning"
    tables = "".join((folder / path).read_text(encoding="utf-8") for path in tables_named_in(folder))
    figures = re.findall(r"(?<![\d.])\d+\.\d{3,4}(?!\d)", words(folder / "README.md"))
    assert len(figures) > 5
    assert [figure for figure in figures if figure not in tables] == []


def tables_named_in(folder):
    return re.findall(r"\]\((\w+/\w+\.md)\)", words(folder / "README.md"))


def by_seed(arm, measure):
    """Return a figure of each run of an arm."""
    runs = (BLOCKS / "runs" / arm.replace(", ", "-").replace(" ", "-")).glob("seed-*")
    return {int(run.name.removeprefix("seed-")): measure(read_metrics(run / "metrics.jsonl")) for run in runs}


MEASURES = {
    "last": lambda rows: rows[-1]["val_loss"],
    "best": lambda rows: min(row["val_loss"] for row in rows),
    "train": lambda rows: rows[-1]["train_loss"],
}
ARMS = ["sampled", "dense, then sampled", "dense, then kept", "kept", "weighted"]


@pytest.mark.parametrize("arm", ARMS)
def test_the_differences_told_of_skipped_blocks_are_those_of_the_metrics(arm):
    line = next(line for line in words(BLOCKS / "README.md").splitlines() if line.startswith(f"| {arm} |"))
    shown = [cell.strip() for cell in line.strip("|").split("|")][2:]
    found = []
    for measure in MEASURES.values():
        arms = {name: by_seed(name, measure) for name in ARMS}
        differences = differences_to(by_seed("dense masked", measure), arms)
        found.append(difference_text(differences[arm].estimate))
    assert shown == found


def test_the_published_columns_are_those_of_the_record():
    page = EXPERIMENTS / "published" / "README.md"
    columns = runpy.run_path(str(EXPERIMENTS / "published" / "columns.py"))["columns"]()
    assert f"<!-- columns.py -->\n{columns}<!-- end -->" in page.read_text(encoding="utf-8")
    assert len(columns.splitlines()) == 2 + 9


def test_what_attention_dropout_left_on_costs_is_that_of_the_record():
    found = json.loads((EXPERIMENTS / "published" / "attention_left_on.json").read_text(encoding="utf-8"))
    costs = {}
    for name, row in found.items():
        costs.setdefault(name.split("-")[1], []).append(row["on"] - row["off"])
    shown = [f"{sum(three) / 3:.3f} at {p}" for p, three in costs.items()]
    assert len(shown) == 3 and all(len(three) == 3 for three in costs.values())
    text = words(EXPERIMENTS / "published" / "README.md")
    assert all(cost in text for cost in (shown[0].replace("at", "nats at"), *shown[1:]))


def test_the_redundancy_told_is_that_of_the_record():
    page = EXPERIMENTS / "redundancy" / "README.md"
    table = runpy.run_path(str(page.parent / "measure.py"))["table"]()
    assert f"<!-- measure.py -->\n{table}<!-- end -->" in page.read_text(encoding="utf-8")
    told = page.read_text(encoding="utf-8").split("<!-- end -->")[1]
    figures = re.findall(r"\d\.\d{3}", told)
    assert len(figures) > 8 and [figure for figure in figures if figure not in table] == []


# A record's folder, and the heading of its figures in the README there or above.
LOSSES = {
    "depth": None,
    "small_data/docstrings": "## Docstrings",
    "small_data/shakespeare": "## Shakespeare",
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_told_of_a_record_are_those_of_its_runs(name):
    folder = EXPERIMENTS / name
    page = next(place for place in (folder, folder.parent) if (place / "README.md").is_file()) / "README.md"
    text, comparison = words(page), load_comparison(folder)
    if LOSSES[name] is not None:
        text = text.split(LOSSES[name])[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    shown = {row[0]: row[1:] for row in rows if row[0] in comparison.arms}
    assert shown.keys() == set(comparison.arms)
    for arm, cells in shown.items():
        losses = (comparison.values(arm, "train_loss"), comparison.values(arm), comparison.best_values(arm))
        assert cells == [f"{sum(found.values()) / len(found):.3f}" for found in losses], arm
    told = re.findall(r"\[-?\d\.\d+, -?\d\.\d+\]", text)
    found = " ".join(
        difference_text(difference.estimate, flip=flip)
        for arm in comparison.arms
        for values in (None, comparison.best_values)
        for difference in differences(comparison, arm, values).values()
        for flip in (False, True)
    )
    assert told and [interval for interval in told if interval not in found] == []


TASKS = ("images", "images_vit", "regression", "causal_lm", "sentences")


@pytest.mark.parametrize("name", TASKS)
def test_the_figures_told_of_a_tasks_record_are_those_of_its_runs(name):
    arms = {}
    for file in sorted((EXPERIMENTS / name / "runs").glob("*/seed-*/run.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        arms.setdefault(found["name"], []).append(found["result"])
    assert len(arms) >= 5 and all(len(results) == 3 for results in arms.values())
    rows = [line.strip("| ").split(" | ") for line in words(EXPERIMENTS / name / "README.md").splitlines()]
    (header, *_), shown = (
        [row for row in rows if row[0] == "arm"],
        {row[0]: row[1:] for row in rows if row[0] in arms},
    )
    keys = [cell.replace("validation", "val").replace(" ", "_") for cell in header[1:]]
    keys = [key if "_" in key else f"val_{key}" for key in keys]
    assert shown.keys() == arms.keys()
    for arm, cells in shown.items():
        means = [sum(result[key] for result in arms[arm]) / 3 for key in keys]
        assert cells == [f"{mean:.3f}" for mean in means], arm


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arm"), [("images", "dropout-input-0.2"), ("regression", "l1-0.003")])
def test_a_fresh_run_gives_what_a_tasks_record_holds(name, arm, tmp_path):
    folder = EXPERIMENTS / name / "runs" / arm / "seed-0"
    recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    fresh = run(load_run_config(folder / "config.yaml"), tmp_path / "run")
    assert fresh["fingerprint"] == recorded["fingerprint"] and fresh["data"] == recorded["data"]
    # Another processor rounds otherwise, and training carries that on.
    assert fresh["result"]["val_loss"] == pytest.approx(recorded["result"]["val_loss"], rel=0.05)


def test_gpt2s_size_was_resumed_exactly():
    found = json.loads((EXPERIMENTS / "gpt2_124m" / "ten_steps.json").read_text(encoding="utf-8"))
    assert found["metrics_equal"] is True and found["weights_equal"] is True
    assert [row["step"] for row in found["metrics"]] == [0, 5, 10]
    assert f"{found['parameters']['total']:,} parameters" in words(EXPERIMENTS / "gpt2_124m" / "README.md")


TUNED = EXPERIMENTS / "tuned"


@pytest.mark.parametrize("setting", ["digits_mlp", "digits_vit", "docstrings", "sentences", "causal_lm"])
def test_what_is_searched_is_what_the_methods_say(setting, monkeypatch):
    monkeypatch.syspath_prepend(TUNED)
    written = runpy.run_path(str(TUNED / "settings.py"))["files"](setting)
    there = {*(TUNED / setting / "configs").glob("*.yaml"), TUNED / setting / "space.yaml"}
    assert {path: path.read_text(encoding="utf-8") for path in there} == written
    arms = [load_run_config(path) for path in sorted(there) if path.name != "space.yaml"]
    methods = read_methods(TUNED / setting / "space.yaml", arms)
    refuse_values(methods)
    assert len(methods) == len(arms)
    row = next(line for line in words(TUNED / "README.md").splitlines() if f"| `{setting}`" in line)
    assert row.endswith(f"| {len(arms)} |")


@pytest.mark.parametrize("claim", runpy.run_path(str(EXPERIMENTS / "claims" / "configs.py"))["CLAIMS"])
def test_the_arms_of_a_claim_are_what_its_script_says(claim):
    written = runpy.run_path(str(EXPERIMENTS / "claims" / "configs.py"))["files"](claim)
    there = sorted((EXPERIMENTS / "claims" / claim / "configs").glob("*.yaml"))
    assert {path: path.read_text(encoding="utf-8") for path in there} == written
    text = words(EXPERIMENTS / "claims" / "README.md")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{claim}`"))
    assert f"| {len({load_run_config(path).name for path in there})} x " in row


def test_the_dropping_rule_keeps_what_is_near_the_lowest_and_what_is_always_compared():
    within_reach = runpy.run_path(str(TUNED / "within_reach.py"))["within_reach"]
    values = {"none": [0.9], "R-Drop": [0.4, 0.2], "late dropout": [0.23], "averaged weights": [0.2301]}
    methods = [
        {"name": name, "trials": [{"value": value} for value in trials]} for name, trials in values.items()
    ]
    assert within_reach(methods) == ["none", "R-Drop", "late dropout"]


# A tuned setting, and the heading of its figures.
FRESH = {
    "digits_mlp": "## The perceptron",
    "digits_vit": "## The vision transformer",
    "docstrings": "## The decoder",
    "shakespeare": "## The decoder on Shakespeare",
    "causal_lm": "## Causal fine-tuning",
    "sentences": "## Sentences",
}


def section(page, heading):
    """Return what stands below a heading, up to the next one of its level."""
    return words(page).split(f"{heading}\n")[1].split("\n## ")[0]


def told(text):
    return [
        each.replace(" nats", "") for each in re.findall(r"-?\d\.\d+ nats \[-?\d\.\d+, -?\d\.\d+\]", text)
    ]


def intervals(comparison, measures):
    """Return every difference of a record as pages write it, to every arm and both ways round."""
    return " ".join(
        difference_text(difference.estimate, flip=flip)
        for arm in comparison.arms
        for measure in measures
        for difference in differences(comparison, arm, measure).values()
        for flip in (False, True)
    )


def test_every_tuned_record_is_told_of():
    assert {file.parent.name for file in TUNED.glob("*/comparison.json")} == set(FRESH)


@pytest.mark.parametrize("setting", FRESH)
def test_the_intervals_told_of_tuned_methods_are_those_of_their_fresh_runs(setting):
    comparison = load_comparison(TUNED / setting)
    text = section(TUNED / "README.md", FRESH[setting])
    found = intervals(
        comparison, [partial(comparison.values, key=f"{part}_loss") for part in ("test", "val")]
    )
    assert told(text) and [each for each in told(text) if each not in found] == []
    searched = json.loads((TUNED / setting / "tuning.json").read_text(encoding="utf-8"))["methods"]
    within_reach = runpy.run_path(str(TUNED / "within_reach.py"))["within_reach"]
    # Where seeds move a loss by more than the rule's reach, all were compared.
    everything = {each["name"] for each in searched}
    assert set(comparison.arms) in (set(within_reach(searched)), everything)
    best = {each["name"]: min(trial["value"] for trial in each["trials"]) for each in searched}
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    assert {row[0]: row[1] for row in rows if row[0] in best} == {k: f"{v:.3f}" for k, v in best.items()}


@pytest.mark.parametrize(("setting", "seeds"), [("digits_mlp", 60), ("docstrings", 60), ("shakespeare", 40)])
def test_the_widths_told_of_single_intervals_are_those_of_their_seeds(setting, seeds):
    comparison = load_comparison(TUNED / setting)
    losses = {arm: comparison.values(arm, "test_loss") for arm in comparison.arms}
    rival = losses.pop("dropout + weight decay")
    assert all(set(found) == set(range(seeds)) for found in (rival, *losses.values()))
    widths = {
        arm: mean_interval([found[seed] - rival[seed] for seed in found]).half_width
        for arm, found in losses.items()
    }
    narrowest, *_, wide, widest = sorted(widths, key=widths.__getitem__)
    told = (
        f"The interval of one difference alone is {widths[narrowest]:.4f} to {widths[wide]:.4f} nats "
        f"to each side, of {widest} {widths[widest]:.4f};"
    )
    assert told in section(TUNED / "README.md", FRESH[setting])


def test_how_the_trials_of_sentences_ended_is_counted():
    searched = json.loads((TUNED / "sentences" / "tuning.json").read_text(encoding="utf-8"))["methods"]
    ends = [trial["value"] for each in searched for trial in each["trials"]]
    below, above = (sum(end < 0.68 for end in ends), sum(end > 0.72 for end in ends))
    chance = len(ends) - below - above
    told = (
        f"of the {len(ends)} trials that were not pruned {chance} stayed at chance, 0.68 to 0.72 nats, "
        f"{above} learned the reviews by heart and ended above that, and {below} came below"
    )
    assert told in section(TUNED / "README.md", FRESH["sentences"])


CLAIMS = EXPERIMENTS / "claims"


def test_every_folder_of_a_claim_is_one_of_the_script():
    claims = set(runpy.run_path(str(CLAIMS / "configs.py"))["CLAIMS"])
    assert {folder.parent.name for folder in CLAIMS.glob("*/configs")} == claims
    assert {file.parent.name for file in CLAIMS.glob("*/comparison.json")} == claims


def means(claim, key):
    """Return the mean over seeds of a figure of a claim's arms, where they have it."""
    comparison = load_comparison(CLAIMS / claim)
    found = {arm: [run.section("result")[key] for run in comparison.usable(arm)] for arm in comparison.arms}
    return {arm: sum(row) / len(row) for arm, row in found.items() if None not in row}


def test_what_cheap_gates_keep_and_learn_is_that_of_their_runs():
    text, kept = section(CLAIMS / "README.md", "## `cheap_gates`"), means("cheap_gates", "keep")
    assert f"keep {100 * min(kept.values()):.0f} to {100 * max(kept.values()):.0f} % in training" in text
    train = means("cheap_gates", "train_loss")
    plain = train.pop("dropout 0.1")
    learned = f"{min(train.values()):.3f} to {max(train.values()):.3f} where dropout's ends at {plain:.3f}"
    assert f"training loss ends at {learned}" in text
    runs = [
        run
        for arm in ("attention of rank 8", "token alone", "token alone and block's own attention")
        for run in load_comparison(CLAIMS / "cheap_gates").usable(arm)
    ]
    assert (
        f"in {sum(bool(run.record['alarms']) for run in runs)} of the {len(runs)} runs with a gate behind"
        in text
    )


def test_what_anchored_gates_keep_and_learn_is_that_of_their_runs():
    text, kept = section(CLAIMS / "README.md", "## `anchored`"), means("anchored", "keep")
    low, high = min(kept.values()), max(kept.values())
    assert f"keep {100 * low:.0f} to {100 * high:.0f} % in training" in text
    train = means("anchored", "train_loss")
    gained = [
        train[arm] - train[gated]
        for arm, gated in (("dropout 0.1", "Anchored"), ("R-Drop", "R-Drop, Anchored"))
    ]
    assert f"training loss ends {gained[0]:.3f} and {gained[1]:.3f} nats lower" in text


@pytest.mark.parametrize("claim", sorted(file.parent.name for file in CLAIMS.glob("*/comparison.json")))
def test_the_intervals_told_of_a_claim_are_those_of_its_runs(claim):
    comparison, text = load_comparison(CLAIMS / claim), section(CLAIMS / "README.md", f"## `{claim}`")
    found = intervals(comparison, [None, comparison.best_values])
    tables = (EXPERIMENTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert told(text) and [each for each in told(text) if each not in found + tables] == []


def test_the_intervals_told_of_the_longer_runs_are_theirs():
    comparison, text = load_comparison(EXPERIMENTS / "longer"), words(EXPERIMENTS / "longer" / "README.md")
    found = intervals(
        comparison, [partial(comparison.values, key=f"{part}_loss") for part in ("test", "val")]
    )
    assert told(text) and [each for each in told(text) if each not in found] == []
