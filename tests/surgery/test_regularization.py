"""The handle that `regularize_` returns: progress, penalty, counting, metrics, and one compilation."""

import inspect
import re

import pytest
import torch
from torch import nn

from transformer_dropout import layers
from transformer_dropout.errors import InputError
from transformer_dropout.layers import ConcreteDropout, Dropout, LearnedDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedules import Cosine, Linear
from transformer_dropout.sites import Site
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

VOCABULARY, CONTEXT, BLOCKS = 19, 6, 3


def decoder():
    torch.manual_seed(0)
    return Decoder(VOCABULARY, DecoderConfig(width=8, heads=2, blocks=BLOCKS, context=CONTEXT))


def tokens(seed=1):
    return torch.randint(0, VOCABULARY, (4, CONTEXT), generator=torch.Generator().manual_seed(seed))


def learned(kind="mlp_output", **arguments):
    return Rule(kind, LearnedDropout, heads=2, shift=1.2, **arguments)


def watched(handle, model):
    """Run a forward; return the keep probabilities and masks by site."""
    seen = {}
    for placed in handle.placed:
        placed.layer.observer = lambda *pair, name=placed.site.name: seen.update({name: pair})
    model(tokens())
    return seen


def test_progress_moves_each_rate_to_p_of_progress_times_depth():
    rule = Rule("attention_output", Dropout, p=Cosine(0.4, 0.0), depth=Linear(0.5, 1.0))
    handle = regularize_(decoder(), Recipe([rule, Rule("embedding", Dropout, p=Linear(0.0, 0.2))]))
    expected = {0.0: [0.0, 0.2, 0.3, 0.4], 0.5: [0.1, 0.1, 0.15, 0.2], 1.0: [0.2, 0.0, 0.0, 0.0]}
    for progress in (0.0, 0.5, 1.0, 0.0):
        handle.set_progress(progress)
        assert [placed.layer.p for placed in handle.placed] == pytest.approx(expected[progress])
        rates = [placed.layer.rate.item() for placed in handle.placed]
        assert rates == pytest.approx(expected[progress])


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_is_a_fraction(progress):
    handle = regularize_(decoder(), Recipe([Rule("embedding", Dropout, p=0.1)]))
    with pytest.raises(InputError, match="between 0 and 1"):
        handle.set_progress(progress)
    assert handle.progress == 0.0


def test_a_moved_rate_acts_in_the_next_forward():
    model = decoder()
    expected = model(tokens())
    handle = regularize_(model, Recipe([Rule("attention_weights", Dropout, p=Linear(0.0, 0.9))]))
    assert torch.equal(model(tokens()), expected)
    handle.set_progress(1.0)
    assert not torch.equal(model(tokens()), expected)
    handle.set_progress(0.0)
    assert torch.equal(model(tokens()), expected)


def test_the_penalty_is_the_weight_times_the_mean_over_the_layers_of_each_rule():
    model = decoder()
    rules = [learned(weight=Linear(0.0, 0.5)), learned("attention_output", penalty="linear", weight=0.25)]
    handle = regularize_(model, Recipe(rules))
    for progress in (0.0, 0.4, 1.0):
        handle.set_progress(progress)
        seen = watched(handle, model)
        squared = sum((seen[f"blocks.{i}.mlp/mlp_output"][0] ** 2 / 2).mean() for i in range(BLOCKS)) / BLOCKS
        linear = sum(seen[f"blocks.{i}.attention/attention_output"][0].mean() for i in range(BLOCKS)) / BLOCKS
        torch.testing.assert_close(handle.penalty(), 0.5 * progress * squared + 0.25 * linear)


def test_the_penalty_trains_the_gates_and_nothing_behind_them():
    model = decoder()
    handle = regularize_(model, Recipe([learned(weight=0.1, blocks=[1])]))
    model(tokens())
    handle.penalty().backward()
    assert model.blocks[1].mlp.mlp_output_dropout.shift.grad.count_nonzero()
    assert model.blocks[0].mlp.projection.weight.grad.count_nonzero()
    assert all(parameter.grad is None for parameter in model.blocks[2].parameters())


def test_the_penalty_is_read_once_after_each_training_forward():
    model = decoder()
    handle = regularize_(model, Recipe([learned(weight=0.1)]))
    with pytest.raises(InputError, match="before a forward in training mode"):
        handle.penalty()
    model(tokens())
    handle.penalty()
    with pytest.raises(InputError, match="once after each forward"):
        handle.penalty()


def test_a_penalty_without_a_weight_and_a_weight_without_a_penalty_are_errors():
    with pytest.raises(InputError, match="names a penalty but no weight"):
        regularize_(decoder(), Recipe([learned(penalty="linear")]))
    with pytest.raises(InputError, match="has a weight, but its LearnedDropout has no penalty"):
        regularize_(decoder(), Recipe([learned(penalty=None, weight=0.1)]))
    with pytest.raises(InputError, match="has a weight, but its Dropout has no penalty"):
        regularize_(decoder(), Recipe([Rule("mlp_output", Dropout, p=0.1, weight=0.1)]))


def test_an_unweighted_rule_adds_no_penalty():
    model = decoder()
    handle = regularize_(model, Recipe([learned()]))
    model(tokens())
    assert handle.penalty() == 0


def test_accumulated_gradients_with_the_penalty_are_the_mean_over_batches():
    model = decoder()
    handle = regularize_(model, Recipe([learned(weight=5.0)]))
    gradients = []
    for batches in ([1], [2], [1, 2]):
        model.zero_grad()
        for seed in batches:
            torch.manual_seed(seed)
            loss = model(tokens(seed), tokens(seed + 10))
            ((loss + handle.penalty()) / len(batches)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, value in gradients[2].items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)


def test_counting_counts_the_masks_of_the_forwards_inside_it():
    model = decoder()
    handle = regularize_(model, Recipe([learned(), Rule("attention_weights", Dropout, p=0.1)]))
    torch.manual_seed(2)
    masks = watched(handle, model)
    torch.manual_seed(2)
    with handle.counting() as counts:
        model(tokens())
        assert {name: count.kept for name, count in counts.items()} == {
            name: mask.sum().item() for name, (_, mask) in masks.items()
        }
        once = {name: count.kept for name, count in counts.items()}
        model(tokens(2))
    assert all(once[name] < count.kept < 2 * 4 * CONTEXT * 8 for name, count in counts.items())
    assert set(counts) == {f"blocks.{i}.mlp/mlp_output" for i in range(BLOCKS)}
    assert {count.total for count in counts.values()} == {2 * 4 * CONTEXT * 8}
    model(tokens())
    assert {count.total for count in counts.values()} == {2 * 4 * CONTEXT * 8}


def test_counting_stops_when_a_forward_fails():
    model = decoder()
    handle = regularize_(model, Recipe([learned()]))
    with pytest.raises(IndexError), handle.counting():
        model(tokens() + VOCABULARY)
    assert all(placed.layer.observer is None for placed in handle.placed)


def test_metrics_are_the_rates_and_what_was_counted_last():
    model = decoder()
    recipe = Recipe([learned(), Rule("attention_output", Dropout, p=0.4, depth=Linear(0, 1))])
    handle = regularize_(model, recipe)
    rates = {f"p/blocks.{i}.attention/attention_output": 0.2 * i for i in range(BLOCKS)}
    assert handle.metrics() == pytest.approx(rates)
    with handle.counting():
        seen = watched_inside(handle, model)
    metrics = handle.metrics()
    for site, (keep_probability, mask) in seen.items():
        assert metrics[f"keep/{site}"] == pytest.approx(mask.mean().item())
        above = (keep_probability >= 0.5).float().mean().item()
        assert metrics[f"keep_thresholded/{site}"] == pytest.approx(above)
    for name in ("keep", "keep_thresholded"):
        by_layer = [metrics[f"{name}/blocks.{i}.mlp/mlp_output"] for i in range(BLOCKS)]
        assert metrics[name] == pytest.approx(sum(by_layer) / BLOCKS)
    assert 0.1 < metrics["keep"] < 0.9


def watched_inside(handle, model):
    """As `watched`, while the handle's own observers go on counting."""
    seen = {}
    for placed in handle.placed:
        count, name = placed.layer.observer, placed.site.name
        if count is not None:
            placed.layer.observer = lambda *pair, count=count, name=name: (
                count(*pair),
                seen.update({name: pair}),
            )
    model(tokens())
    return seen


def test_in_evaluation_the_counted_masks_are_the_thresholded_ones():
    model = decoder().eval()
    handle = regularize_(model, Recipe([learned()]))
    with handle.counting():
        model(tokens())
    metrics = handle.metrics()
    assert metrics["keep"] == metrics["keep_thresholded"]


def test_a_rate_that_is_learned_is_among_the_metrics():
    handle = regularize_(decoder(), Recipe([Rule("mlp_output", ConcreteDropout, initial_p=0.3)]))
    with torch.no_grad():
        handle.placed[0].layer.logit.fill_(0.0)
    assert list(handle.metrics().values()) == pytest.approx([0.5, 0.3, 0.3])


@pytest.mark.parametrize("state", [{}, {"recipe": [], "progress": 0.5}])
def test_a_state_of_something_else_is_refused(state):
    handle = regularize_(decoder(), Recipe())
    with pytest.raises(InputError, match=r"The state has no .* hand over what state_dict"):
        handle.load_state_dict(state)


def test_the_report_has_one_line_per_site():
    handle = regularize_(decoder(), Recipe([learned(), Rule("embedding", Dropout, p=0.25)]))
    lines = handle.report().splitlines()
    assert len(lines) == 1 + BLOCKS
    assert lines[0] == "embedding  embedding  Dropout(p=0.25)"
    assert re.fullmatch(r"blocks\.0\.mlp  mlp_output  LearnedDropout\(width=\d+, heads=\d+, .*\)", lines[1])


@pytest.mark.parametrize("name", layers.__all__)
def test_measuring_changes_no_buffer(name):
    kind, model = getattr(layers, name), decoder()
    parameters = inspect.signature(kind).parameters
    place = "attention_weights" if kind.acts_on in ("heads", "scores") else "mlp_output"
    given = {"heads": 2, "std": 0.5, "block": 2, "rank": 2}
    needed = {n: given[n] for n in given if n in parameters and parameters[n].default is parameters[n].empty}
    needed |= {"block": 2} if "block" in parameters else {}
    needed |= {"p": 0.3} if issubclass(kind, layers.RateLayer) else {}
    model.norm = nn.Sequential(model.norm, Transposed())  # running statistics of the model's own
    handle = regularize_(model, Recipe([Rule(place, kind, **needed)]))
    model(tokens())
    handle.set_progress(0.5)
    before = {key: value.clone() for key, value in model.named_buffers()}
    with torch.no_grad(), handle.counting():
        model(tokens(2))
    after = dict(model.named_buffers())
    assert len(before) > 1 and before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


class Transposed(nn.Module):
    """A batch norm over the channels of (batch, tokens, width)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.mT).mT


def test_a_training_forward_does_move_what_measures():
    model = decoder()
    handle = regularize_(model, Recipe([Rule("mlp_output", layers.ImportanceDropout, p=0.3)]))
    model(tokens())
    assert all(placed.layer.importance.count_nonzero() for placed in handle.placed)


def test_rates_are_right_at_once_after_an_update_and_after_loading_a_state():
    rules = [Rule("embedding", Dropout, p=Linear(0.0, 0.4)), Rule("mlp_output", Dropout, p=0.2)]
    handle = regularize_(decoder(), Recipe(rules))
    handle.set_progress(0.5)
    handle.update({"mlp_output": Linear(0.1, 0.5)})
    rates = [0.2, 0.3, 0.3, 0.3]
    assert [placed.layer.p for placed in handle.placed] == pytest.approx(rates)
    assert [placed.layer.rate.item() for placed in handle.placed] == pytest.approx(rates)
    other = regularize_(decoder(), Recipe(rules))
    other.load_state_dict(handle.state_dict())
    assert other.progress == 0.5
    assert [placed.layer.p for placed in other.placed] == pytest.approx(rates)
    assert [placed.layer.rate.item() for placed in other.placed] == pytest.approx(rates)


def test_a_rate_learned_by_a_layer_is_no_mask_that_is_counted():
    model = decoder()
    handle = regularize_(model, Recipe([learned(), Rule("attention_output", ConcreteDropout)]))
    for training in (True, False):
        model.train(training)
        with handle.counting() as counts:
            model(tokens())
        assert {name.rpartition("/")[2] for name in counts} == {"mlp_output"}
        assert handle.metrics()["p/blocks.0.attention/attention_output"] == pytest.approx(0.1)


def test_an_update_that_reaches_no_rate_lists_those_there_are_and_changes_nothing():
    rules = [learned(), Rule("embedding", Dropout, p=0.1), Rule("attention_output", Dropout, p=0.2)]
    handle = regularize_(decoder(), Recipe(rules))
    places = ", ".join(p.site.name for p in handle.placed if p.site.kind != "mlp_output")
    assert places.startswith("embedding/embedding, blocks.0.attention/attention_output, ")
    for selector in ("mlp_output", "no.*"):
        sentence = f"No placed layer with a rate matches {selector!r}; there are: {places}."
        with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
            handle.update({selector: 0.3})
    for wrong in (1.5, Linear(0.0, 1.5)):
        with pytest.raises(InputError, match="the update for 'embedding'"):
            handle.update({"embedding": wrong})
    rates = [placed.layer.p for placed in handle.placed if placed.layer.probability()]
    assert rates == pytest.approx([0.1, *[0.2] * BLOCKS])


class Shared(nn.Module):
    """Three places at which one rate drops."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        for part in (self.first, self.second, self.third):
            x = self.drop(part(x))
        return x


def shared_sites(**facts):
    places = (("first", "attention_output", "output"), ("second", "mlp_output", "output"))
    return [
        Site(path=path, kind=kind, access=access, **{"width": 4, "rate": "drop.p"} | facts)
        for path, kind, access in (*places, ("third", "block", "block"))
    ]


def test_places_without_a_rule_keep_the_rate_that_was_silenced_at_another():
    model = Shared()
    handle = regularize_(model, Recipe([Rule("mlp_output", Dropout, p=0.5)]), sites=shared_sites())
    found = {name: module for name, module in model.named_modules() if name.endswith("_dropout")}
    assert {name: (type(layer), layer.p) for name, layer in found.items()} == {
        "first.attention_output_dropout": (Dropout, 0.3),
        "second.mlp_output_dropout": (Dropout, 0.5),
        "third.block_dropout": (layers.LayerDrop, 0.3),
    }
    assert model.drop.p == 0.0
    handle.remove()
    assert model.drop.p == 0.3
    assert not any(name.endswith("_dropout") for name, _ in model.named_modules())


def test_a_rate_of_the_models_own_follows_the_schedule():
    model = Shared()
    site = Site(path="first", kind="attention_output", access="rate", width=4, rate="drop.p")
    rule = Rule("attention_output", Dropout, p=Linear(0.0, 0.4))
    handle = regularize_(model, Recipe([rule]), sites=[site])
    assert model.drop.p == 0.0
    handle.set_progress(0.5)
    assert model.drop.p == pytest.approx(0.2)
    handle.remove()
    assert model.drop.p == 0.3


def test_places_are_proven_with_the_inputs_that_are_handed_over():
    rule = Rule("mlp_output", Dropout, p=0.5)
    with pytest.raises(InputError, match="is said to be 7 wide"):
        regularize_(Shared(), Recipe([rule]), sites=shared_sites(width=7), inputs=torch.randn(2, 3, 4))
