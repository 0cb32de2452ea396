"""Tables that a notebook shows: complete, and every text escaped."""

from html.parser import HTMLParser

import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit import Audit, Finding
from transformer_dropout.notebook import html_table
from transformer_dropout.sites import Sites
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


class Cells(HTMLParser):
    """Collects rows of cells; fails on a tag that no table has."""

    def __init__(self, text):
        super().__init__()
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td", "br"), tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def decoder():
    return Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))


def test_text_is_escaped_and_nothing_is_lost():
    text = html_table("a <b>", ("x&y", "z"), [("<script>", None), ("two\nlines", 3)])
    assert Cells(text).rows == [["x&y", "z"], ["<script>", ""], ["twolines", "3"]]
    assert "two<br>lines" in text and "a &lt;b&gt;" in text


def test_sites_are_a_list_and_show_as_a_table():
    sites = td.find_sites(decoder())
    assert isinstance(sites, list) and type(sites) is Sites
    assert [row[:2] for row in Cells(sites._repr_html_()).rows[1:]] == [[s.path, s.kind] for s in sites]


def test_a_handle_shows_its_layers_and_their_rates_now():
    rules = [
        td.Rule("embedding", td.Dropout, p=td.Linear(0.0, 0.5)),
        td.Rule("block", td.GaussianNoise, std=1),
        td.Rule("mlp_output", td.LearnedDropout, heads=2, weight=td.Linear(0.0, 0.5)),
    ]
    handle = td.regularize_(decoder(), td.Recipe(rules))
    handle.set_progress(0.5)
    assert "5 layers at progress 0.5<" in handle._repr_html_()
    rows = Cells(handle._repr_html_()).rows
    assert rows[0] == ["path", "kind", "layer", "p now", "penalty weight now"]
    assert rows[1] == ["embedding", "embedding", "Dropout(p=0.25)", "0.25", ""]
    assert {tuple(row[i] for i in (1, 3, 4)) for row in rows[2:]} == {
        ("block", "", ""),
        ("mlp_output", "", "0.25"),
    }


def test_an_audit_shows_what_ran_and_what_to_put_right():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    rows = Cells(td.audit(model, torch.ones(2, 4))._repr_html_()).rows
    assert any(row[0] == "1" and "dropout" in " ".join(row) for row in rows)
    found = Finding(code="a-code", site="<img src=x>", message="do & don't")
    shown = Audit(events=(), findings=(found,))._repr_html_()
    assert Cells(shown).rows[1] == ["a-code", "<img src=x>", "do & don't"]
