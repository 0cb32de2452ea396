"""The pages on why things work: what each claims is measured anew, and so are its numbers."""

import importlib
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(file.stem for file in (DOCS / "pages").glob("*.md") if file.stem != "README")
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e-\d+)?")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured():
    """What a page's script measures, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)

        @lru_cache
        def measure(name):
            module = importlib.import_module(f"pages.{name}")
            return module, module.measure()

        yield measure


def numbers_of(text):
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("name", PAGES)
def test_the_numbers_of_a_page_are_what_its_script_measures(measured, name):
    module, found = measured(name)
    page = (DOCS / "pages" / f"{name}.md").read_text(encoding="utf-8")
    (shown,) = re.findall(rf"<!-- numbers of {name}\.py -->\n(.*?)\n<!-- end -->", page, flags=re.DOTALL)
    fresh = module.table(found)
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", fresh)
    # Another processor rounds otherwise, and training carries that on.
    assert numbers_of(shown) == pytest.approx(numbers_of(fresh), rel=0.15, abs=0.03)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_figure_that_its_script_draws(measured, name):
    module, found = measured(name)
    svg = (DOCS / "pages" / f"{name}.svg").read_text(encoding="utf-8")
    drawn = module.figure(found)
    assert f"]({name}.svg)" in (DOCS / "pages" / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r">([^<>\d]+)</text>", svg) == re.findall(r">([^<>\d]+)</text>", drawn)
    assert len(svg) < 60_000


def test_noise_at_a_linear_regression_ends_at_the_closed_form_and_nowhere_else(measured):
    _, found = measured("ridge")
    for own, other, plain in found["distances"].values():
        assert own < 0.01
        assert other > 0.05 and plain > 0.3


def test_small_noise_adds_tikhonovs_term(measured):
    _, found = measured("ridge")
    for std, (added, term) in found["small"].items():
        assert added == pytest.approx(term, rel=0.05 if std <= 0.05 else 0.3)


def test_one_pass_is_the_mean_over_masks_for_linear_layers_and_leaves_it_with_depth(measured):
    _, found = measured("mean_over_masks")
    assert found["linear"] < 1e-12
    depths = list(found["depths"].values())
    # One hidden layer: only the error of so many masks is left.
    assert depths[0]["logits"] < 0.015 and depths[0]["geometric"] < depths[0]["arithmetic"] / 3
    for shallow, deep in pairwise(depths):
        assert all(deep[key] > shallow[key] for key in shallow)


def test_monte_carlo_pays_on_shifted_digits_and_costs_on_others(measured):
    _, found = measured("mean_over_masks")
    (one, many), *shifted = found["shifts"].values()
    assert many["loss"] > one["loss"] and many["ece"] > one["ece"]
    for one, many in shifted:
        assert many["loss"] < one["loss"] - 0.1 and many["ece"] < one["ece"] - 0.03
        assert abs(many["accuracy"] - one["accuracy"]) < 0.03
        assert many["ece"] > 0.1


def test_dropout_before_batch_norm_shifts_the_variance_and_each_way_out_mends_it(measured):
    _, found = measured("batch_norm")
    arms = found["arms"]
    assert all(ratio > 1.3 for ratio in arms["dropout before the norms"]["ratios"])
    others = [arm for name, arm in arms.items() if name != "dropout before the norms"]
    assert all(abs(ratio - 1) < 0.15 for arm in others for ratio in arm["ratios"])
    worst = sum(arms["dropout before the norms"]["losses"])
    assert all(sum(arm["losses"]) < worst for arm in others)
    assert found["audit"] == ["noise1", "noise2"]


def test_units_trained_with_dropout_do_not_rely_on_others(measured):
    _, found = measured("co_adaptation")
    without, dropped = (arm["means"] for arm in found.values())
    assert dropped["against"] < 0.7 * without["against"]
    assert dropped["cancelled"] < 1.3 < 1.5 < without["cancelled"]
    assert dropped["correlation"] < without["correlation"]
    cost = {name: arm["half lost"] - arm["loss"] for name, arm in (("d", dropped), ("w", without))}
    assert cost["d"] < 0.6 * cost["w"]


def test_dropout_makes_the_network_bear_the_loss_of_what_was_dropped(measured):
    _, found = measured("placement")
    none, pixels, first, last, both = (arm["means"] for arm in found.values())
    assert none["train"] < min(arm["train"] for arm in (pixels, first, last, both))
    assert pixels["loss"] < none["loss"]
    # Each helps against its own kind of loss most.
    assert pixels["pixels lost"] < min(first["pixels lost"], last["pixels lost"]) < none["pixels lost"]
    assert max(first["units lost"], last["units lost"]) < pixels["units lost"] < none["units lost"]
    assert both["units lost"] < pixels["units lost"] and both["pixels lost"] < first["pixels lost"]
