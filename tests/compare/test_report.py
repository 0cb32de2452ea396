"""The report: a page that stands alone, in a real browser too, and files that carry every number."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.report import cautions, facts, write_report
from transformer_dropout.errors import InputError

HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,3300",
]


class Links(HTMLParser):
    """Collects every address that a page would load or link to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")
        ]


def test_writes_page_table_and_summary(folder):
    path = folder.write()
    assert write_report(path) == path / "report.html"
    assert sorted(item.name for item in path.iterdir()) == [
        "comparison.json",
        "report.html",
        "runs",
        "summary.json",
        "table.md",
    ]
    table = (path / "table.md").read_text()
    assert table.startswith("**learned has the lowest validation loss (")
    assert table.count("| dropout p=0.1 |") == 2


def test_the_page_loads_nothing_and_runs_nothing(folder):
    page = write_report(folder.write(seeds=(1, 2, 3))).read_text()
    links = Links(page)
    assert all(address.startswith("#") for address in links.found)
    assert not links.tags & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"url\((?!#)|@import", page)
    assert links.tags >= {"svg", "table", "figure"}


def test_the_page_holds_its_sections_in_order(folder):
    path = folder.write()
    folder.change("learned", 1, alarms=["mask collapse in block 3"], notes=["the gate gets no gradient"])
    folder.change("twin", 2, status="failed", error="RuntimeError: no memory")
    page = write_report(path).read_text()
    headings = re.findall(r"<h[12][^>]*>(.*?)</h", page)
    assert headings[0].startswith("learned has the lowest validation loss")
    assert headings[1:] == [
        "Read this first",
        "Result",
        "Verdicts",
        "Figures",
        "Cost",
        "How this was measured",
        "Notes of the runs",
        "Recipes and settings",
    ]
    assert "mask collapse in block 3" in page
    assert "seed 2 is left out of all statistics: failed: RuntimeError: no memory" in page
    assert "This setting can tell regularizers apart" in page
    assert "select: mlp_output" in page


def test_names_errors_and_recipes_are_escaped(folder, arm_of):
    evil = "<script>alert(1)</script>"
    path = folder.write({evil: arm_of(0.0, [{"layer": evil}]), "b": arm_of(0.1)}, seeds=(1, 2))
    folder.change("b", 1, alarms=[evil], status="failed", error=evil)
    page = write_report(path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_summary_has_every_number(folder):
    path = folder.write()
    folder.change("twin", 2, status="failed", error="no memory")
    write_report(path)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["format"], summary["reference"]["name"], summary["regime"]["tells"]) == (
        1,
        "dropout p=0.1",
        True,
    )
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    learned = arms["learned"]["difference"]
    assert learned["estimate"]["low"] < learned["estimate"]["mean"] < learned["estimate"]["high"] < 0
    assert learned["p"] <= learned["holm_p"] < 0.05 < learned["sign_flip_p"] == learned["sign_flip_floor"]
    assert arms["none"]["val_loss_by_seed"].keys() == {"1", "2", "3", "4", "5"}
    assert arms["learned"]["keep"]["mean"] == pytest.approx(0.6226, abs=1e-3)
    assert arms["twin"]["unfinished"] == {"2": "failed: no memory"}
    assert arms["none"]["cost"]["training_flops"] == 8.1e6 * 2000 * 4096


def test_an_unfinished_comparison_still_has_a_report(folder):
    path = folder.write(seeds=(1,))
    for name in ("none", "dropout p=0.1", "learned", "twin"):
        folder.change(name, 1, status="running", result=None)
    page = write_report(path).read_text()
    assert "No run has finished with a validation loss" in page
    assert "<figure>" not in page


def test_a_failed_report_leaves_the_old_one(folder):
    path = folder.write(seeds=(1, 2))
    before = write_report(path).read_text()
    folder.change("twin", 2, data={"train_sha256": "other"})
    with pytest.raises(InputError, match="saw different data"):
        write_report(path)
    assert (path / "report.html").read_text() == before


def test_cautions_name_what_weakens_a_verdict(folder):
    path = folder.write(seeds=(1, 2))
    assert cautions(load_comparison(path)) == ["2 seeds are few: take every verdict as provisional below 3."]
    record = json.loads((folder.cell("twin", 2) / "run.json").read_text())
    record["result"] |= {"evaluation_bit_equal": False, "restored_step": 800}
    folder.change("twin", 2, result=record["result"], versions={"torch": "2.12.0"})
    metrics = folder.cell("twin", 2) / "metrics.jsonl"
    metrics.write_text('{"step": 2000, "lr": 0.001}\n')
    found = cautions(load_comparison(path))[1:]
    assert found == [
        "Two evaluations of the same weights differed in twin seed 2.",
        "twin seed 2 went back to an earlier step chosen by validation loss: that minimum flatters the arm.",
        "The learning rate ends above a fifth of its peak in twin seed 2.",
        "The runs differ in versions torch (2.12.0, 2.13.0), which changes random masks and time.",
    ]


def test_facts_say_how_it_was_measured(folder):
    found = facts(load_comparison(folder.write(seeds=(1, 2))))
    assert found["training split"] == f"400,000 tokens, 1,500,000 bytes, 812 documents, sha256 {'a' * 64}"
    assert found["evaluation"] == (
        "whole validation split, in evaluation mode, at the final step, never the minimum over training; "
        "two passes were bit-equal in 8 of 8 runs"
    )
    assert found["versions"] == "python 3.11.7, torch 2.13.0, transformer-dropout 0.1.0"
    assert found["command"] == "dropout compare arms.yaml --out OUT"


def browse(page, profile, *options):
    """Open a page in headless Chromium and return what it prints."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium on PATH to look at the report")
        pytest.skip("chromium is not on PATH")
    command = [chromium, *HEADLESS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_browser_shows_headline_table_and_figures(folder, tmp_path):
    page = write_report(folder.write())
    rendered = browse(page, tmp_path / "profile", "--dump-dom")
    assert re.search(r'<h1 id="headline">learned has the lowest validation loss', rendered)
    rows = re.findall(r'<th scope="row"><span class="arm">(.*?)</span>', rendered)
    assert rows[:4] == ["none", "dropout p=0.1", "learned", "twin"]
    assert rendered.count("<svg") == 4
    assert "← better" in rendered


def test_a_browser_can_take_a_picture_of_the_page(folder, tmp_path):
    page = write_report(folder.write(seeds=(1, 2, 3)))
    picture = tmp_path / "report.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}")
    assert picture.stat().st_size > 100_000  # a blank page of this size is below 20 kB


def test_facts_tell_a_partial_evaluation_and_a_restored_step(folder):
    path = folder.write(seeds=(1,))
    record = json.loads((folder.cell("twin", 1) / "run.json").read_text())
    record["config"]["training"]["eval_windows"] = 64
    folder.change("twin", 1, config=record["config"], result=record["result"] | {"restored_step": 800})
    assert facts(load_comparison(path))["evaluation"].startswith(
        "64 windows of the validation split, in evaluation mode, at the final step, or at the restored one"
    )


def test_many_alarms_and_cautions_stay_short(folder):
    path = folder.write()
    for seed in (1, 2, 3, 4, 5):
        folder.change("learned", seed, alarms=[f"block {block} collapsed" for block in range(4)])
        (folder.cell("none", seed) / "metrics.jsonl").write_text('{"step": 2000, "lr": 0.001}\n')
    page = write_report(path).read_text()
    assert "<summary>19 more of learned</summary>" in page
    assert "none seed 4 and 1 more runs." in page


def test_losses_are_counted_per_what_the_comparison_says(folder):
    path = folder.write(seeds=(1, 2, 3))
    assert "nats a token" in write_report(path).read_text(encoding="utf-8")
    record = json.loads((path / "comparison.json").read_text())
    (path / "comparison.json").write_text(json.dumps(record | {"item": "sentence"}))
    page = write_report(path).read_text(encoding="utf-8")
    assert "nats a sentence" in page
    assert "a token" not in page
