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


def test_eight_lines_are_dropout_in_each_framework(measured):
    _, found = measured("from_scratch")
    assert {framework for framework, _ in found["rows"]} == {"PyTorch", "JAX", "NumPy"}
    for (_, p), row in found["rows"].items():
        assert row["difference"] < 1e-6
        assert row["kept"] == pytest.approx(1 - p, abs=0.01)
        assert row["mean"] == pytest.approx(1.0, abs=0.01)
        assert row["std"] == pytest.approx((p / (1 - p)) ** 0.5, rel=0.02)
    assert found["means"]["not divided"][-1][1] < 0.1


def test_the_page_from_scratch_shows_the_code_that_was_run():
    page = (DOCS / "pages" / "from_scratch.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "def " in block]
    sources = "".join(
        (DOCS / "pages" / f"{name}.py").read_text() for name in ("from_scratch", "from_scratch_jax")
    )
    plain = re.sub(r"dropout_in_\w+\(", "dropout(", sources)
    assert len(blocks) == 3
    for block in blocks:
        assert block in plain
        # The signature, and eight lines.
        assert len(block.splitlines()) == 9


def test_without_the_root_a_softmax_has_chosen_before_anything_is_learned(measured):
    _, found = measured("attention_scale")
    widths = sorted({width for width, _ in found["random"]})
    with_root, without = ([found["random"][width, root] for width in widths] for root in (True, False))
    assert max(row["largest"] for row in with_root) < 0.2
    assert all(row["std"] == pytest.approx(1.0, abs=0.05) for row in with_root)
    for width, row in zip(widths, without, strict=True):
        assert row["std"] == pytest.approx(width**0.5, rel=0.05)
    for narrow, wide in pairwise(without):
        assert wide["largest"] > narrow["largest"] and wide["slopes"] < narrow["slopes"]
    at_64 = found["random"][64, False]
    assert at_64["largest"] > 0.8 and at_64["slopes"] < 0.3
    assert found["learned"]["with the root"][-1][1] < 0.5 * found["learned"]["without"][-1][1]
    with_root, without = found["gate"]
    assert without > 2 * with_root


def test_each_textbooks_lambda_is_a_weight_of_l2(measured):
    _, found = measured("l2")
    assert all(difference < 1e-9 for _, difference in found["converted"].values())
    assert found["all parameters"] < 1e-9
    assert found["optimizers"]["SGD"] < 1e-9
    assert found["optimizers"]["AdamW"] > 0.05
    matrices, everything = (dict(curve) for curve in found["means"].values())
    assert all(mean == pytest.approx(3.0, abs=0.01) for mean in matrices.values())
    assert everything[3.0] < 1.0
