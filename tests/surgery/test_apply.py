"""The hooks by which a layer acts at each kind of access, and what names of places come to."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.surgery._apply import (
    Surgery,
    add_sequence,
    beside_output,
    buffer_name,
    child_name,
    gate_with_layer,
    on_branch,
    on_input,
    on_output,
    put_back,
    reader_of,
)
from transformer_dropout.surgery._own_rates import Read

X, REST = torch.arange(6.0).view(1, 2, 3), torch.ones(2)


class Doubled(nn.Module):
    """Doubles what it is given, and takes note of it."""

    def __init__(self, shape=None):
        super().__init__()
        self.shape, self.seen = shape, []

    def forward(self, x):
        self.seen.append(x)
        return 2 * x if self.shape is None else 2 * x.view(self.shape)


class DoubledLayer(td.layers.DropoutLayer):
    """A layer that doubles."""

    def forward(self, x):
        return 2 * x


class Block(nn.Module):
    """A residual block with a layer as its child."""

    def __init__(self, child):
        super().__init__()
        self.child = child

    def forward(self, hidden, mask=None):
        return hidden + 1


def test_a_layer_acts_on_an_output_or_its_first_part():
    for child in (Doubled(), Doubled((6, 1))):
        module = Block(child)
        assert on_output("child", module, (), X).equal(2 * X)
        first, rest = on_output("child", module, (), (X, REST))
        assert first.equal(2 * X) and rest is REST


def test_a_layer_acts_on_the_first_input_however_it_is_given():
    for child in (Doubled(), Doubled((6, 1))):
        module = Block(child)
        (first, rest), named = on_input("child", module, (X, REST), {"mask": None})
        assert first.equal(2 * X) and rest is REST and named == {"mask": None}
        given, named = on_input("child", module, (), {"hidden": X, "mask": REST})
        assert given == () and list(named) == ["hidden", "mask"]
        assert named["hidden"].equal(2 * X) and named["mask"] is REST


def test_a_layer_acts_on_what_a_block_adds():
    module = Block(Doubled())
    for arguments, keywords in (((X,), {}), ((), {"mask": REST, "hidden": X})):
        assert on_branch("child", (0,), module, arguments, keywords, X + 1).equal(X + 2)
        for kind in (tuple, list):
            found = on_branch("child", (0,), module, arguments, keywords, kind([X + 1, REST]))
            assert type(found) is kind
            assert found[0].equal(X + 2) and found[1] is REST
    assert all(added.equal(torch.ones_like(X)) for added in module.child.seen)


def test_a_layer_acts_on_each_stream_of_a_block():
    first, second = on_branch("child", (0, 1), Block(Doubled()), (X, 5 * X), {}, (X + 1, 5 * X + 2))
    assert first.equal(X + 2) and second.equal(5 * X + 4)


@pytest.mark.parametrize("kind", [lambda x: x, lambda x: (x, REST), lambda x: [x, REST]])
def test_where_a_layer_changes_nothing_a_block_returns_its_own_output(kind):
    output = kind(X + 1)
    assert on_branch("child", (0,), Block(nn.Identity()), (X,), {}, output) is output


def test_a_layer_acts_on_the_gate_of_experts_and_sees_what_is_beside_it():
    module = Block(Doubled())
    assert gate_with_layer("child", module, torch.add, X, X).equal(4 * X)
    assert beside_output("child", module, (), X) is None
    assert module.child.seen[-1] is X


def sequence_of(cache=None):
    return SimpleNamespace(cache=cache, past=3, padding_mask=REST, unflattened=lambda x: x + 1)


def test_a_layer_is_told_of_padding_and_of_nothing_else_without_a_cache():
    given, named = add_sequence(sequence_of(), 2, 5, Doubled(), (X, REST), {"more": 1})
    assert given[0].equal(X + 1) and given[1] is REST
    assert named == {"more": 1, "padding_mask": REST, "past": None}


def test_a_layer_has_a_slot_of_its_own_behind_those_of_the_model():
    cache = object()
    for layer in (Doubled().eval(), Doubled()):
        with torch.set_grad_enabled(not layer.training):
            slot = add_sequence(sequence_of(cache), 2, 5, layer, (X,), {})[1]["past"]
        assert (slot.cache, slot.past, slot.index) == (cache, 3, 7)
    with pytest.raises(InputError, match="Doubled cannot train through a cache"):
        add_sequence(sequence_of(cache), 2, 5, Doubled(), (X,), {})


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_that_is_put_back_has_the_mode_of_the_layer(mode):
    owner, original = Block(Doubled().train(mode)), nn.Dropout().train(not mode)
    put_back(owner, "child", original)
    assert owner.child is original and original.training is mode


def rate_site(path, rate, **facts):
    return td.Site(path=path, kind="attention_weights", access="rate", rate=rate, **facts)


@pytest.mark.parametrize(
    ("site", "reader", "buffer"),
    [
        (rate_site("h.0", "h.0.attn.drop.p"), "h.0.attn", "drop_p_rate"),
        (rate_site("h.0", "h.0.attn.dropout"), "h.0.attn", "dropout_rate"),
        (rate_site("h.0", "dropout"), "", "dropout_rate"),
        (rate_site("h.0", "h.0.attn.drop.p", found="run"), "h.0", "attn_drop_p_rate"),
        (rate_site("", "attn.dropout", found="run"), "", "attn_dropout_rate"),
    ],
)
def test_who_reads_a_rate_and_what_its_buffer_is_called(site, reader, buffer):
    assert (reader_of(site), buffer_name(site)) == (reader, buffer)
    assert child_name(site) == "attention_weights_dropout"


def test_a_rate_of_another_access_is_read_where_it_is_held():
    site = td.Site(path="h.0", kind="mlp_output", access="output", rate="h.0.drop.p", found="run")
    assert reader_of(site) == "h.0"


def model():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1)


def test_a_child_has_the_dtype_and_mode_of_its_parent_and_goes_again():
    encoder = model().double().eval()
    surgery, child = Surgery(encoder), nn.Linear(2, 2)
    assert encoder.use_nested_tensor
    parent = surgery.add_child("layers.0.linear1", "more", child)
    assert parent is encoder.layers[0].linear1 and parent.more is child
    assert (child.weight.dtype, child.training) == (torch.float64, False)
    assert not encoder.use_nested_tensor
    surgery.undo()
    assert not hasattr(parent, "more") and encoder.use_nested_tensor


def test_a_rate_is_written_and_put_back_and_known_from_before():
    encoder = model()
    surgery, drop = Surgery(encoder), encoder.layers[0].dropout
    site = td.Site(path="layers.0", kind="mlp_hidden", access="output", rate="layers.0.dropout.p")
    assert (drop.p, surgery.rate_before("layers.0.dropout.p")) == (0.1, 0.0)
    surgery.silence(site)
    surgery.write_rate(site, 0.4)
    assert (drop.p, surgery.rate_before("layers.0.dropout.p")) == (0.4, 0.1)
    surgery.undo()
    assert drop.p == 0.1


def test_further_rates_at_a_place_are_silenced_and_its_own_only_where_a_layer_acts():
    encoder = model()
    first, second = encoder.layers[0].dropout, encoder.layers[0].dropout1
    for access, rates in (("output", (0.0, 0.0)), ("rate", (0.1, 0.0))):
        surgery = Surgery(encoder)
        facts = {"rate": "layers.0.dropout.p", "silences": ("layers.0.dropout1.p",)}
        surgery.silence(td.Site(path="layers.0", kind="mlp_hidden", access=access, **facts))
        assert (first.p, second.p) == rates
        surgery.undo()
        assert (first.p, second.p) == (0.1, 0.1)


def test_a_hook_that_was_there_before_sees_what_the_layer_gives():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), []
    model[0].register_forward_hook(lambda module, given, output: seen.append(output))
    site = td.Site(path="0", kind="mlp_output", access="output", width=4)
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=1.0)]), sites=[site])
    model.train()(torch.ones(2, 4))
    assert not seen[0].any()
    handle.remove()
    assert len(model[0]._forward_hooks) == 1


def test_a_hooked_block_drops_what_it_adds_whatever_the_names_of_its_arguments():
    torch.manual_seed(0)
    site = td.Site(path="block", kind="block", access="block", width=3)
    recipe = td.Recipe([td.Rule("block", td.LayerDrop, p=1.0)])
    model = nn.ModuleDict({"block": Block(nn.Identity())})
    model.forward = lambda x: model.block(mask=REST, hidden=x)
    handle = td.regularize_(model, recipe, sites=[site])
    assert model.train()(X).equal(X)
    assert model.eval()(X).equal(X + 1)
    handle.remove()
    assert model.train()(X).equal(X + 1)


class Stack(nn.Module):
    """A stack whose blocks know of padding and cache, inside a model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs_embeds, attention_mask=None):
        return self.second(self.first(inputs_embeds))


class Asking(nn.Module):
    """A layer that looks at other tokens, and keeps what it was told of them."""

    def forward(self, x, padding_mask=None, past=None):
        self.told = padding_mask, past
        return x


def test_layers_of_a_stack_are_told_of_one_sequence_and_have_places_of_their_own():
    model = nn.ModuleDict({"stack": Stack(), "beside": Stack()})
    model.forward = lambda x, mask: model.stack(x, attention_mask=mask)
    surgery, layers = Surgery(model), [Asking() for _ in range(4)]
    for layer, owner in zip(layers, ("stack", "beside", "stack", None), strict=True):
        surgery.inform(td.Site(path="a", kind="mlp_output", access="output", owner=owner, n_blocks=5), layer)
    assert list(surgery._sequences) == ["stack", "beside"]
    first, _, second, unknowing = layers
    mask = torch.ones(1, 2)
    model(X, mask)
    for layer in (first, second):
        layer(X)
        assert layer.told[0] is mask and layer.told[1] is None
    surgery._sequences["stack"].cache = SimpleNamespace()
    with torch.no_grad():
        first(X), second(X), unknowing(X)
    assert [layer.told[1].index for layer in (first, second)] == [5, 6]
    assert unknowing.told == (None, None)
    surgery.undo()
    first(X)
    assert first.told == (None, None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_runs_at_a_place_is_the_layer_or_the_rate_or_what_is_hooked():
    encoder, layer = model(), td.Dropout(0.5)
    surgery = Surgery(encoder)
    held = "layers.0.self_attn"
    rate = rate_site(held, f"{held}.dropout")
    surgery.place(rate, layer)
    read = surgery.runs_at(rate, layer)
    assert isinstance(read, Read)
    assert (read.owner, read.name, read.reader) == (encoder.layers[0].self_attn, "dropout", read.owner)
    module = td.Site(path="layers.0.dropout1", kind="attention_output", access="module")
    surgery.place(module, layer)
    assert surgery.runs_at(module, layer) is layer is encoder.layers[0].dropout1
    hooked = td.Site(path="layers.0.linear1", kind="mlp_hidden", access="output")
    assert surgery.runs_at(hooked, layer) is encoder.layers[0].linear1
    surgery.undo()


def test_a_rate_follows_its_progress_and_what_has_moved_is_known():
    encoder = model()
    surgery, attention = Surgery(encoder), encoder.layers[0].self_attn
    rate = rate_site("layers.0.self_attn", "layers.0.self_attn.dropout")
    surgery.place(rate, td.Dropout(0.5))
    assert surgery.moved_rates() == {}
    surgery.write_rate(rate, 0.4)
    assert attention.dropout == 0.4 and attention.dropout_rate.item() == pytest.approx(0.4)
    assert surgery.moved_rates() == {"layers.0.self_attn.dropout": 0.1}
    assert list(attention.state_dict()) == list(model().layers[0].self_attn.state_dict())
    surgery.undo()
    assert attention.dropout == 0.1 and not hasattr(attention, "dropout_rate")
    assert "forward" not in vars(attention)


def test_a_module_that_several_parts_share_is_replaced_in_all_of_them():
    shared = nn.Dropout(0.5)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.Linear(2, 2).double(), shared)})
    surgery, layer = Surgery(model.eval()), td.Dropout(0.5)
    surgery.place(td.Site(path="a.0", kind="mlp_output", access="module"), layer)
    assert model.a[0] is model.b[1] is layer and not layer.training and layer.rate.dtype == torch.float64
    surgery.undo()
    assert model.a[0] is model.b[1] is shared


def test_a_layer_acts_on_the_input_of_a_module_and_beside_another():
    model, seen = nn.Sequential(nn.Identity(), nn.Identity()), Doubled()
    surgery = Surgery(model)
    surgery.place(td.Site(path="1", kind="classifier", access="input"), DoubledLayer())
    surgery.show_output("0", "source", seen)
    assert model(X).equal(2 * X) and seen.seen[-1].equal(X)
    surgery.undo()
    assert model(X).equal(X) and len(seen.seen) == 1
