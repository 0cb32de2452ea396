"""The page of an audit: everything at its place, nothing loaded, nothing run, readable on a phone."""

import re
from collections import OrderedDict
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.page import audit_page, cards_of
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

EVIL = "<script>alert(1)</script>"


class Forgetful(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p)


def broken_gpt2():
    model = tiny_model("gpt2", resid_pdrop=0.25).train()
    model.transformer.h[1].mlp.dropout = Forgetful(0.2)
    return model


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    model = broken_gpt2()
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(audit_page(td.audit(model, tiny_inputs(model)), model, title="gpt2"), encoding="utf-8")
    return file


class Tags(HTMLParser):
    """Collects the tags of a page and every address that it would load."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]


def test_blocks_make_a_column_and_equal_ones_share_a_card():
    model = tiny_model("gpt2", resid_pdrop=0.25)
    cards, left = cards_of(td.audit(model, tiny_inputs(model)), model)
    assert [card.title for card in cards] == ["before the blocks", "transformer.h.0 … transformer.h.1"]
    assert [(row.place, row.training, row.evaluation) for row in cards[1].rows()] == [
        ("attn", 1, 0),
        ("attn.resid_dropout", 1, 0),
        ("mlp.dropout", 1, 0),
    ]
    assert left == []


def test_a_finding_stands_at_its_place_and_splits_the_blocks():
    model = broken_gpt2()
    cards, left = cards_of(td.audit(model, tiny_inputs(model)), model)
    assert [card.title for card in cards][1:] == ["transformer.h.0", "transformer.h.1"]
    assert [[finding.code for finding in card.findings] for card in cards] == [[], [], ["active-in-eval"]]
    assert [row.evaluation for row in cards[2].rows()] == [0, 0, 1]
    assert left == []


def test_what_no_block_holds_is_told_above_the_column():
    model = tiny_model("gpt2")
    model.config.resid_pdrop = 0.33
    audit = td.audit(model, tiny_inputs(model))
    assert [finding.code for finding in cards_of(audit, model)[1]] == ["dead-field"]
    assert audit_page(audit, model, title="x").index("dead-field") < audit_page(
        audit, model, title="x"
    ).index("before the blocks")


def test_stacks_and_what_lies_between_come_in_the_order_of_the_run():
    model = tiny_model("t5")
    cards, _ = cards_of(td.audit(model, tiny_inputs(model)), model)
    assert [card.title.split(".")[0] for card in cards] == [
        "before the blocks",
        "encoder",
        "between the blocks",
        "decoder",
        "behind the blocks",
    ]


def test_the_page_says_everything(page):
    text = page.read_text(encoding="utf-8")
    for words in (
        "active-in-eval",
        "transformer.drop",
        "attention weights",
        "0.25",
        "training=self.training",
    ):
        assert words in text
    assert text.count('class="operation"') == 7
    assert "dead-field" not in text


def test_the_page_loads_nothing_and_runs_nothing(page):
    found = Tags(page.read_text(encoding="utf-8"))
    assert found.addresses == []
    assert not found.tags & {"script", "link", "img", "iframe", "object", "base"}


def test_all_text_is_escaped():
    name = EVIL.replace(".", "")
    model = nn.Sequential(OrderedDict({"0": nn.Linear(4, 4), name: nn.Dropout(0.3), "2": nn.ReLU()}))
    model.config = type("Config", (), {})()
    vars(model.config)[f"dropout{EVIL}"] = 0.2
    text = audit_page(td.audit(model, torch.ones(2, 4)), model, title=EVIL)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4


def test_a_model_that_drops_nothing_has_a_page_too():
    model = nn.Linear(4, 4)
    assert "No random or mask operation ran" in audit_page(
        td.audit(model, torch.ones(2, 4)), model, title="x"
    )


PROBE = """<script>
document.body.style.width = "360px";
const parts = [...document.body.querySelectorAll("*")].map(part => part.getBoundingClientRect());
const left = document.body.getBoundingClientRect().left;
document.body.dataset.reaches = Math.max(...parts.map(part => part.right - left));
document.body.dataset.smallest = Math.min(...[...document.body.querySelectorAll("code, dd, dt, span, p")]
  .map(part => parseFloat(getComputedStyle(part).fontSize)));
</script></body>"""


def test_a_phone_shows_the_column_without_scrolling_sideways(page, tmp_path, browse):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    rendered = browse(probed, "--dump-dom")
    assert float(re.search(r'data-reaches="([\d.]+)"', rendered)[1]) <= 360
    assert float(re.search(r'data-smallest="([\d.]+)"', rendered)[1]) >= 12
    assert rendered.count('<article class="card') == 3


def test_a_browser_can_take_a_picture_of_the_page(page, tmp_path, browse):
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}")
    assert picture.stat().st_size > 60_000  # a blank page of this size is below 10 kB
