import pytest
import torch
from torch import nn

from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.errors import InputError
from transformer_dropout.sites import KINDS, Site, find_sites
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def model():
    return Decoder(11, DecoderConfig(width=8, heads=2, blocks=3, context=5))


def test_the_sites_of_a_decoder_stand_in_the_order_of_the_forward_pass(model):
    in_block = ["attention_weights", "attention_output", "mlp_hidden", "mlp_output", "block"]
    assert [(site.block, site.kind) for site in find_sites(model)] == [
        (None, "embedding"),
        *((block, kind) for block in range(3) for kind in in_block),
        (None, "classifier"),
    ]


def test_the_path_of_a_site_names_the_module_that_returns_a_tensor_of_its_width(model):
    widths, sites = {}, [site for site in find_sites(model) if site.width is not None]
    for site in sites:
        if site.access in ("output", "block"):
            model.get_submodule(site.path).register_forward_hook(
                lambda module, arguments, output, site=site: widths.update({site: output.shape[-1]})
            )
    model(torch.zeros(1, 5, dtype=torch.long))
    assert widths == {site: site.width for site in sites}
    assert len(widths) == 1 + 3 * 4 + 1


def test_attention_weights_are_reached_through_the_attention_and_have_no_width(model):
    sites = [site for site in find_sites(model) if site.kind == "attention_weights"]
    assert [site.path for site in sites] == [f"blocks.{block}.attention" for block in range(3)]
    assert {(site.access, site.width) for site in sites} == {("attention", None)}


def test_every_kind_is_a_known_word_and_every_place_is_named_once(model):
    sites = find_sites(model)
    assert {site.kind for site in sites} <= set(KINDS)
    assert len({(site.path, site.kind) for site in sites}) == len(sites)
    assert {site.n_blocks for site in sites} == {3}


def test_depth_runs_from_zero_in_the_first_block_to_one_in_the_last(model):
    depths = {site.block: site.depth for site in find_sites(model)}
    assert depths == {None: 0.0, 0: 0.0, 1: 0.5, 2: 1.0}


def test_a_stack_of_one_block_has_depth_zero():
    assert Site(path="x", kind="block", access="output", block=0, n_blocks=1).depth == 0.0


def test_a_model_without_any_place_is_refused():
    with pytest.raises(InputError, match="No place for a layer was found in a Linear"):
        find_sites(nn.Linear(2, 2))


@pytest.mark.parametrize(("family", "causal"), [("gpt2", True), ("bert", False)])
def test_a_model_without_data_shows_the_same_places(family, causal):
    found = find_sites(tiny_model(family).to("meta"))
    assert found == find_sites(tiny_model(family))
    assert {site.causal for site in found} == {causal}
