"""A part of the table of models, another each day, and models as people write them."""

import datetime
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

DOCS = Path(__file__).parents[2] / "docs"
IDS = torch.arange(24).view(2, 12) % 48
# Their rows take minutes.
LARGE = {"falcon_h1", "textnet", "yolos"}


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


written = load("written_models")


def of_the_day(count=3):
    """Return some names of the table, others each day, so that all come round."""
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    known = re.search(r"Wrong, with the sentence in the cell: (.*)\.$", text, re.MULTILINE)
    left_out = {"model", "---", *LARGE, *(known.group(1).split(", ") if known else ())}
    names = [n for n in re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE) if n not in left_out]
    day = datetime.date.today().toordinal()
    return [names[(day * count + place) % len(names)] for place in range(count)]


def problems(model, inputs):
    checks = td.check_sites(model, inputs)
    assert checks
    return [check.problem for check in checks if check.problem]


@pytest.mark.slow
def test_rows_of_the_day_are_right():
    for name in of_the_day():
        model = tiny_model(name)
        assert problems(model, tiny_inputs(model)) == [], name


@pytest.mark.parametrize("name", written.MODELS)
def test_models_as_people_write_them_are_right(name):
    assert problems(getattr(written, name)(), (IDS,)) == []


class Added(nn.Module):
    """Adds, and does nothing else."""

    def forward(self, x, stream):
        return x + stream


class Apart(nn.Module):
    """Norm, work and sum of each branch are three modules of a list."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(48, 32), nn.Linear(32, 48)
        works = (written.FusedAttention, lambda: written.perceptron(32)) * 2
        self.layers = nn.ModuleList(nn.ModuleList([nn.LayerNorm(32), make(), Added()]) for make in works)

    def forward(self, ids):
        x = self.embedding(ids)
        for norm, work, add in self.layers:
            x = add(work(norm(x)), x)
        return self.head(x)


def test_a_module_that_only_adds_is_no_block():
    model = Apart()
    found = {site.path: site.kind for site in td.find_sites(model, (IDS,)) if site.block == 1}
    assert found == {
        "layers.2.1": "attention_weights",
        "layers.2.1.resid_dropout": "attention_output",
        "layers.3.1.3": "mlp_hidden",
        "layers.3.1.5": "mlp_output",
    }
    assert problems(model, (IDS,)) == []


class Gated(nn.Module):
    """Its stream goes through a gate and is no sum."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(48, 32), nn.Linear(32, 48)
        self.drop, self.gate = nn.Dropout(0.1), nn.GRUCell(32, 32)
        self.attentions = nn.ModuleList(written.FusedAttention() for _ in range(2))
        self.works = nn.ModuleList(written.perceptron(32) for _ in range(2))

    def forward(self, ids):
        x = self.drop(self.embedding(ids))
        for attention, work in zip(self.attentions, self.works, strict=True):
            x = self.gate(attention(x).flatten(0, 1), x.flatten(0, 1)).view_as(x)
            x = self.gate(work(x).flatten(0, 1), x.flatten(0, 1)).view_as(x)
        return self.head(x)


def test_behind_gates_no_dropout_inside_is_called_a_classifier():
    kinds = {site.path: site.kind for site in td.find_sites(Gated(), (IDS,))}
    assert kinds["drop"] == "embedding"
    assert kinds["works.0.3"] == "mlp_hidden"


def test_a_classifier_in_the_middle_is_noticed():
    model = written.TeachingGPT()
    sites = [s for s in td.find_sites(model, (IDS,)) if s.path != "transformer.h.0.mlp.drop"]
    wrong = td.Site(path="transformer.h.0.mlp.drop", kind="classifier", access="module", width=32)
    found = {c.site.kind for c in td.check_sites(model, (IDS,), sites=[*sites, wrong]) if c.problem}
    assert found == {"classifier"}
