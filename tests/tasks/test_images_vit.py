import pytest
import torch

import transformer_dropout as td
from transformer_dropout.runs.cost import count_cost, count_parameters
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run_config import config_from_data
from transformer_dropout.runs.task import Task
from transformer_dropout.sites import find_sites
from transformer_dropout.tasks.images.data import ImageData
from transformer_dropout.tasks.images_vit import ImagesVit, VisionTransformer, ViTConfig

TASK = ImagesVit()
SMALL = ViTConfig(width=16, heads=2, blocks=2)


def test_it_keeps_the_protocol():
    assert isinstance(TASK, Task)


def test_each_patch_is_a_token():
    model = VisionTransformer(ViTConfig(width=8, heads=2, blocks=1, patch=3), (6, 9), 5)
    assert model.positions.shape == (1, 6, 8)
    assert model(torch.rand(4, 6, 9)).shape == (4, 5)


def test_what_it_sees_depends_on_where_a_patch_lies():
    torch.manual_seed(0)
    model = VisionTransformer(SMALL, (8, 8), 10).eval()
    image = torch.rand(1, 8, 8)
    assert not torch.allclose(model(image), model(image.flip(1)), atol=1e-4)
    with torch.no_grad():
        model.positions.zero_()
        # Without positions the tokens are a set: patches that change places change nothing.
        swapped = torch.cat([image[:, 2:4], image[:, :2], image[:, 4:]], 1)
        torch.testing.assert_close(model(swapped), model(image), atol=1e-5, rtol=1e-4)


def test_its_places_are_found_and_none_is_causal():
    sites = find_sites(VisionTransformer(SMALL, (8, 8), 10))
    kinds = {"embedding", "attention_weights", "attention_output", "mlp_hidden", "mlp_output", "block"}
    assert {site.kind for site in sites} == kinds | {"classifier"}
    assert not any(site.causal for site in sites)
    assert {site.n_blocks for site in sites if site.kind == "mlp_output"} == {2}


@pytest.mark.parametrize("arm", TASK.default_arms({}, {}), ids=lambda arm: arm["name"])
def test_every_arm_can_be_placed_and_evaluation_is_without_noise(arm):
    torch.manual_seed(0)
    model = TASK.build(SMALL, TASK.prepare(SMALL, ImageData(train_images=50), None))
    td.regularize_(model, td.Recipe.from_data(arm["recipe"]))
    x = torch.rand(3, 8, 8)
    assert torch.equal(model.eval()(x), model(x))
    noisy = not torch.equal(model.train()(x), model(x))
    assert noisy == bool(arm["recipe"])


def test_it_learns_the_digits(train):
    found = train(TASK, SMALL, ImageData(), steps=120, lr=5e-3)
    assert found.before["accuracy"] < 0.4
    assert found.after["accuracy"] > 0.6


def test_a_run_trains_experts_and_sparse_units():
    data = {
        "task": "images_vit",
        "model": {"width": 16, "heads": 2, "blocks": 2},
        "data": {"train_images": 50},
        "recipe": [{"select": "mlp_hidden", "layer": "SparseReLU", "weight": 0.1}],
        "training": {"steps": 2, "probe_windows": 8, "experts": {"experts": 3, "top_k": 2, "weight": 0.5}},
    }
    config = config_from_data(data, {})
    splits = TASK.prepare(config.model, config.data, None)
    trained = Training(config, splits, Processes(rank=0, size=1, device=torch.device("cpu")))
    assert list(trained.objective.mixtures.placed) == ["blocks.0.mlp", "blocks.1.mlp"]
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    trained.advance()
    assert not [name for name, p in trained.model.named_parameters() if torch.equal(p, before[name])]
    row = trained.evaluate(twice=True)
    assert row["evaluation_bit_equal"] and row["penalty"] > 0
    assert 0.2 < row["keep_by_site"]["blocks.0.dropout/mlp_hidden"] < 0.8
    # Two MLPs of 16 x 64 become three experts of half the units and a router; there are no biases.
    added = count_parameters(trained.model) - count_parameters(VisionTransformer(SMALL, (8, 8), 10))
    assert added == 2 * (3 * 2 * 16 * 32 + 3 * 16 - (2 * 16 * 64 + 64 + 16))
    assert count_cost(config, splits).parameters == count_parameters(trained.model)


def test_a_patch_that_does_not_fit_is_refused_with_one_that_does():
    with pytest.raises(td.InputError, match=r"does not divide images of 28 x 28; use one of 1, 2, 4, 7, 14"):
        VisionTransformer(ViTConfig(patch=3), (28, 28), 10)


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"heads": 5}])
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(td.InputError, match=rf"model\.{next(iter(wrong))}"):
        ViTConfig(**wrong)


def test_its_last_block_alone_can_see_a_batch_twice():
    torch.manual_seed(0)
    model = VisionTransformer(SMALL, (8, 8), 10)
    td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.5)]))
    seen = []
    for block in model.blocks:
        block.norm1.register_forward_pre_hook(lambda m, given: seen.append(len(given[0])))
    first, second = td.tail_passes(model, torch.rand(3, 8, 8), 1)
    assert seen == [3, 6]
    assert first.shape == second.shape == (3, 10)
    assert not first.equal(second)
