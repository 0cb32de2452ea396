"""Layers of a user's own: in recipes, on disk, and loaded again; a file imports nothing."""

import subprocess
import sys
import types
from typing import TYPE_CHECKING

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.layers import layer_for, word_for
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

if TYPE_CHECKING:
    from decimal import Decimal


class Halved(td.layers.DropoutLayer):
    """Halves what it is given in training, and asks for the width of its site."""

    def __init__(self, width: int, *, by: float = 0.5, note: "Decimal | None" = None) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.full((width,), by))

    def forward(self, x):
        return x * self.by if self.training else x


class Sometimes(td.layers.RateLayer):
    """A layer with a rate."""

    def forward(self, x):
        return x * (torch.rand(()) >= self.p) if self.training else x


class Outer:
    class Inner(Sometimes):
        pass


class Last(Sometimes):
    """Acts in the last block only, which it asks the site for."""

    @classmethod
    def for_site(cls, site, arguments, *, inputs=None):
        layer = super().for_site(site, arguments, inputs=inputs)
        layer.last = site.block == site.n_blocks - 1
        return layer


HERE = __name__
RECIPE = td.Recipe(
    [td.Rule("mlp_output", Halved, by=0.25), td.Rule("attention_output", Outer.Inner, p=td.Linear(0.1, 0.4))]
)


@pytest.fixture(autouse=True)
def imported(monkeypatch):
    # pytest imports test files without listing them.
    monkeypatch.setitem(sys.modules, HERE, sys.modules.get(HERE) or as_module())


def as_module():
    module = types.ModuleType(HERE)
    vars(module).update(globals())
    return module


def decoder():
    torch.manual_seed(0)
    return Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))


def seeded(model):
    torch.manual_seed(3)
    return model(torch.arange(12).view(2, 6))


def test_our_layers_are_called_by_their_name_and_others_by_their_import_path():
    assert (word_for(td.Dropout), layer_for("Dropout")) == ("Dropout", td.Dropout)
    assert word_for(Outer.Inner) == f"{HERE}:Outer.Inner"
    assert layer_for(f"{HERE}:Outer.Inner") is Outer.Inner
    namesake = type("Dropout", (Sometimes,), {"__module__": HERE})
    assert word_for(namesake) == f"{HERE}:Dropout"


def test_a_recipe_with_own_layers_goes_through_yaml():
    text = RECIPE.to_yaml()
    assert f"layer: {HERE}:Halved" in text
    assert td.Recipe.from_yaml(text) == RECIPE


def test_own_layers_are_saved_and_loaded_with_what_they_learned(tmp_path):
    model = decoder()
    handle = td.regularize_(model, RECIPE)
    with torch.no_grad():
        handle.placed[-1].layer.by.uniform_()
    td.save_regularized(tmp_path, handle)
    other = decoder()
    restored = td.load_regularized(tmp_path, other)
    handle.set_progress(0.5)
    restored.load_state_dict(handle.state_dict())
    assert {p.layer.p for p in restored.placed if isinstance(p.layer, Outer.Inner)} == {0.25}
    assert torch.equal(seeded(other), seeded(model))


def test_a_layer_asks_its_site_for_more_than_a_width():
    handle = td.regularize_(decoder(), td.Recipe([td.Rule("block", Last, p=0.2)]))
    assert [placed.layer.last for placed in handle.placed] == [False, True]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("Dropuot", "There is no layer 'Dropuot'. Did you mean 'Dropout'"),
        ("my.layers.Mine", "A layer of your own is written module:Class"),
        ("not_imported_yet:Mine", "write import not_imported_yet before it is read"),
        ("os:getcwd", "os has no layer 'getcwd'"),
        ("torch.nn:Dropout", "inherits from td.layers.DropoutLayer"),
        ("os:path.join.x", "os has no layer"),
        ("os:sep.x", "os has no layer"),
        (f"{HERE}:", "has no layer ''"),
        (":Mine", "has no layer|imports nothing"),
        (f"{HERE}:f.<locals>.Mine", "inside a function"),
    ],
)
def test_other_words_are_refused(word, sentence):
    with pytest.raises(td.InputError, match=sentence):
        td.Rule.from_data({"select": "mlp_output", "layer": word, "p": 0.1})


def test_a_recipe_causes_no_import():
    code = (
        "import sys, types, transformer_dropout as td\n"
        "lazy = types.ModuleType('lazy')\n"
        "def load(name): import this_must_not_be_imported\n"
        "lazy.__getattr__ = load; sys.modules['lazy'] = lazy\n"
        "for word in ('antigravity:Mine', 'lazy:Mine', 'xml.dom:minidom.Node'):\n"
        "    before = set(sys.modules)\n"
        "    try: td.Recipe.from_data([{'select': 'block', 'layer': word}])\n"
        "    except td.InputError: assert set(sys.modules) == before, word\n"
        "    else: raise SystemExit(word)\n"
    )
    # What reading a recipe itself needs is loaded first.
    rule = {"select": "block", "layer": "LayerDrop", "p": 0.1}
    first = f"import transformer_dropout as td, yaml; td.Recipe.from_data([{rule}])\n"
    subprocess.run([sys.executable, "-c", first + code], check=True)


def test_an_argument_that_no_file_can_hold_is_refused_when_written():
    recipe = td.Recipe([td.Rule("mlp_output", Halved, note=object())])
    with pytest.raises(td.InputError, match=r"cannot be written: .* make the object inside the layer"):
        recipe.to_yaml()
