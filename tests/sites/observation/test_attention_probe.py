"""The probe for kernels that hide their mask: it finds the rate that was really used."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from transformer_dropout.sites.observation import attention_probe
from transformer_dropout.sites.observation.attention_probe import probe_attention


def tensors(queries, keys, width, dtype=torch.float32, heads=4, key_heads=4):
    shapes = ((2, heads, queries, width), (2, key_heads, keys, width), (2, key_heads, keys, width))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize(("queries", "keys", "width"), [(64, 64, 16), (64, 8, 32), (32, 48, 64)])
def test_the_rate_is_found_whatever_the_shapes(p, queries, keys, width):
    assert probe_attention(*tensors(queries, keys, width), p) == pytest.approx(p, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rate_is_found_in_half_precision(dtype):
    assert probe_attention(*tensors(64, 64, 32, dtype), 0.25) == pytest.approx(0.25, abs=0.05)


def test_grouped_queries():
    grouped = tensors(64, 64, 32, key_heads=2)
    assert probe_attention(*grouped, 0.25, enable_gqa=True) == pytest.approx(0.25, abs=0.05)


def test_a_kernel_that_rounds_or_ignores_the_rate_is_found_out(monkeypatch):
    def rounding(query, key, value, dropout_p):
        return scaled_dot_product_attention(query, key, value, dropout_p=round(dropout_p * 2) / 2)

    monkeypatch.setattr(attention_probe, "scaled_dot_product_attention", rounding)
    assert probe_attention(*tensors(64, 64, 32), 0.37) == pytest.approx(0.5, abs=0.05)
    assert probe_attention(*tensors(64, 64, 32), 0.2) == 0.0


def test_the_random_state_stays():
    state = torch.get_rng_state()
    drawn = tensors(8, 8, 8)
    torch.set_rng_state(state)
    probe_attention(*drawn, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_weight_measures_nothing():
    assert probe_attention(*(tensor[:1, :1, :1, :1] for tensor in tensors(2, 2, 2)), 0.5) is None
