"""The report: a page that stands alone, in a real browser too, and files that carry every number."""

import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.report import (
    LiveReport,
    others_note,
    result_note,
    settings_text,
    summary,
    write_all,
    write_report,
)
from transformer_dropout.compare.verdicts import judge
from transformer_dropout.errors import InputError

SIZE = "1280,3300"


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
    assert learned["p"] < learned["adjusted_p"] < 0.05 < learned["sign_flip_p"] == learned["sign_flip_floor"]
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
    assert "0 of 4 runs are finished, 4 running." in page
    assert "<figure>" not in page


def test_a_failed_report_leaves_the_old_one(folder):
    path = folder.write(seeds=(1, 2))
    before = write_report(path).read_text()
    folder.change("twin", 2, data={"train_sha256": "other"})
    with pytest.raises(InputError, match="saw different data"):
        write_report(path)
    assert (path / "report.html").read_text() == before


def test_a_browser_shows_headline_table_and_figures(folder, browse):
    page = write_report(folder.write())
    rendered = browse(page, "--dump-dom", size=SIZE)
    assert re.search(r'<h1 id="headline">learned has the lowest validation loss', rendered)
    rows = re.findall(r'<th scope="row"><span class="arm">(.*?)</span>', rendered)
    assert rows[:4] == ["none", "dropout p=0.1", "learned", "twin"]
    assert rendered.count("<svg") == 4
    assert "← better" in rendered


def test_a_browser_can_take_a_picture_of_the_page(folder, tmp_path, browse):
    page = write_report(folder.write(seeds=(1, 2, 3)))
    picture = tmp_path / "report.png"
    browse(page, f"--screenshot={picture}", size=SIZE)
    assert picture.stat().st_size > 100_000  # a blank page of this size is below 20 kB


def test_many_alarms_and_cautions_stay_short(folder):
    path = folder.write()
    for seed in (1, 2, 3, 4, 5):
        folder.change("learned", seed, alarms=[f"block {block} collapsed" for block in range(4)])
        (folder.cell("none", seed) / "metrics.jsonl").write_text('{"step": 2000, "lr": 0.001}\n')
    page = write_report(path).read_text()
    assert "<summary>19 more of learned</summary>" in page
    assert "none seed 4 and 1 more runs." in page


def test_a_page_reloads_itself_only_while_its_comparison_goes_on(folder):
    path = folder.write(seeds=(1, 2))
    folder.change("twin", 2, status="running", result=None)
    with FileLock(path / ".comparison.lock"):
        page = write_report(path).read_text()
    assert '<meta http-equiv="refresh" content="10">' in page
    assert "7 of 8 runs are finished, 1 running." in page
    assert "7 of 8 runs are finished, 1 running." in (path / "table.md").read_text()
    assert "is left out of all statistics" not in page
    assert "http-equiv" not in write_report(path).read_text()


def test_figures_are_kept_for_minutes_while_runs_go_on(folder, monkeypatch):
    path = folder.write(seeds=(1, 2))
    folder.change("twin", 2, status="running", result=None)
    live = LiveReport(path)
    with FileLock(path / ".comparison.lock"):
        live.write()
        assert live.figures == []
        live.write(figures=True)
        drawn = live.figures
        assert drawn
        folder.change("none", 1, status="failed")
        assert "6 of 8 runs are finished" in live.write().read_text()
        assert live.figures is drawn
        live.drawn_at -= 151
        live.write()
        assert live.figures is not drawn
        assert "<svg" in write_report(path).read_text()
    live.write()


def test_of_runs_that_end_at_once_few_wait_for_the_report(folder, monkeypatch):
    live, now, written = LiveReport(folder.write(seeds=(1, 2))), [0.0], []

    def slow(*arguments):
        written.append(now[0])
        now[0] += 2.0

    module = sys.modules[LiveReport.__module__]
    monkeypatch.setattr(module, "write_all", slow)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(100):
        live.update()
        now[0] += 1.0
    assert written == [0.0, 42.0, 84.0]
    live.write()
    assert len(written) == 4


def test_all_files_are_written_or_none(folder, tmp_path, monkeypatch):
    path = folder.write(seeds=(1, 2))
    write_report(path)
    before = {item.name: item.read_bytes() for item in path.iterdir() if item.is_file()}
    folder.change("twin", 2, status="failed")

    def full(self, text, encoding):
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return self.write_bytes(text.encode())

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match=r"cannot be written to .*: no space left on device"):
        write_report(path)
    assert {item.name: item.read_bytes() for item in path.iterdir() if item.is_file()} == before


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        write_all(tmp_path / "gone", {"a": "b"})


def test_all_tables_and_sentences_use_the_tasks_words(folder, accuracy_task):
    path = folder.write(seeds=(1, 2, 3), task=accuracy_task)
    page = write_report(path).read_text(encoding="utf-8")
    table = (path / "table.md").read_text(encoding="utf-8")
    for text in (page, table):
        assert "Accuracy in %" in text
        assert "Loss in nats per image" in text
        assert "token" not in text
        assert "The 1,110 images of the test split are the same for all" in text
    assert "test split was read once, at the end" in page
    summary = json.loads((path / "summary.json").read_text())
    arm = summary["arms"][0]
    assert {"val_accuracy", "test_accuracy", "val_loss", "val_accuracy_by_seed"} <= arm.keys()


def test_a_training_of_the_users_own_has_a_line_for_each_check(folder):
    task = {"name": "trial", "item": "", "metrics": [{"name": "bleu", "unit": "", "better": "higher"}]}
    path = folder.write(seeds=(1, 2), task=task | {"item": "x"})
    for cell in path.glob("runs/*/*/run.json"):
        record = json.loads(cell.read_text())
        checks = {"paired_start": True, "recipe_applied": None, "repeatable": record["seed"] == 1 or None}
        record |= {"task": task, "checks": checks, "flops": {}, "parameters": {}, "machine": {}, "data": {}}
        record["config"] = {
            "name": record["name"],
            "recipe": record["config"]["recipe"],
            "settings": {"lr": 1},
        }
        cell.write_text(json.dumps(record))
    page = write_report(path).read_text()
    for line in (
        "<dt>equal first evaluation of the arms of a seed</dt><dd>yes</dd>",
        "<dt>recipe applied</dt><dd>not verified</dd>",
        "<dt>evaluation repeated with the same numbers</dt><dd>yes in 4 runs, not verified in 4 runs</dd>",
    ):
        assert line in page
    assert "highest validation bleu" in page
    assert "arms of one seed share" not in page
    folder.change("twin", 2, checks={"paired_start": False})
    assert "A check failed in twin seed 2: equal first evaluation" in write_report(path).read_text()


def test_names_reach_neither_page_nor_table_as_markup(folder, arm_of):
    evil = "a\x1b[31m<b>](http://x)|\n# c"
    path = folder.write({evil: arm_of(0.0), "b": arm_of(0.1)}, seeds=(1, 2))
    page, table = write_report(path).read_text(), (path / "table.md").read_text()
    assert "\x1b" not in page + table
    assert "<b>" not in page
    assert "<b>" not in table
    assert "](http" not in table
    assert not re.search(r"^# c", table, flags=re.M)
    rows = [line for line in table.splitlines() if line.startswith("| a")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {
        len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("| arm")
    } or len(rows) == 2


def test_the_summary_tells_each_seed_of_each_arm(folder):
    path = folder.write(seeds=(1, 2, 3))
    folder.change("twin", 2, alarms=["The masks keep all."])
    folder.change("none", 3, status="failed", error="no memory")
    comparison = load_comparison(path)
    found = summary(comparison, judge(comparison))
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert {name: arm["alarms"] for name, arm in arms.items() if arm["alarms"]} == {
        "twin": {"2": ["The masks keep all."]}
    }
    assert {name: arm["unfinished"] for name, arm in arms.items() if arm["unfinished"]} == {
        "none": {"3": "failed: no memory"}
    }
    assert list(arms) == ["none", "dropout p=0.1", "learned", "twin"]
    assert list(arms["none"]["val_loss_by_seed"]) == ["1", "2"]
    assert arms["twin"]["val_loss_by_seed"] == {str(s): v for s, v in comparison.values("twin").items()}
    assert arms["twin"]["best_val_loss_by_seed"] == {
        str(s): v for s, v in comparison.best_values("twin").items()
    }


def test_a_note_says_what_the_numbers_are(folder, accuracy_task):
    comparison = load_comparison(folder.write(seeds=(1, 2), task=accuracy_task))
    note = result_note(comparison)
    assert note.startswith("Accuracy in %, mean over seeds ± half the 95 % t-interval, at the last step or")
    assert (
        "the restored one. A difference is arm minus reference, paired by seed, in a moderated t-test" in note
    )
    values = [v for arm in comparison.arms for v in comparison.values(arm, "test_accuracy").values()]
    share = sum(values) / len(values)
    width = 196 * (share * (1 - share) / 1110) ** 0.5
    end = "The 1,110 images of the test split are the same for all; other ones would move every accuracy by"
    assert others_note(comparison).endswith(f"{end} about ± {width:.1f} points.")
    for path in folder.path.glob("runs/*/*/run.json"):
        record = json.loads(path.read_text())
        del record["data"]["test"]
        path.write_text(json.dumps(record))
    assert others_note(load_comparison(folder.path)).endswith("no verdict reads them.")


def test_settings_of_a_run_are_those_that_make_it(folder):
    comparison = load_comparison(folder.write(seeds=(1,)))
    run = next(iter(comparison.of("learned")))
    shown = yaml.safe_load(settings_text(run))
    assert list(shown) == ["recipe", "training", "model"]
    assert shown["recipe"] == run.section("config")["recipe"]
