import torch

from transformer_dropout.layers import LearnedMarginalDropout

WIDTH, HEADS = 8, 2


def layer(**words):
    torch.manual_seed(0)
    built = LearnedMarginalDropout(WIDTH, HEADS, shift=1.2, **words)
    torch.nn.init.normal_(built.qkv.weight, std=0.4)
    with torch.no_grad():
        built.shift.copy_(torch.linspace(0.3, 2.8, WIDTH))
    return built


def run(built, x, forwards=600):
    with torch.no_grad():
        for _ in range(forwards):
            built(x)
            built.set_progress(0.5)


def test_each_channel_is_kept_as_often_as_by_the_gate():
    built, x = layer(), torch.randn(64, 5, WIDTH)
    run(built, x)
    expected = built.keep_probability(built.gate(x)).mean(dim=(0, 1))
    torch.testing.assert_close(built.rates, expected, atol=0.01, rtol=0)
    kept = torch.stack([(built(x) != 0).float() for _ in range(60)]).mean(dim=(0, 1, 2))
    torch.testing.assert_close(kept, expected, atol=0.02, rtol=0)


def test_the_masks_do_not_depend_on_the_input():
    built = layer()
    torch.manual_seed(1)
    first = built(torch.randn(3, 5, WIDTH)) != 0
    torch.manual_seed(1)
    torch.randn(3, 5, WIDTH)
    assert torch.equal(built(torch.full((3, 5, WIDTH), 9.0)) != 0, first)


def test_the_gate_is_trained_as_a_learned_mask_is():
    built, x = layer(), torch.randn(3, 5, WIDTH)
    built(x).sum().backward()
    found = built.qkv.weight.grad.clone()
    built.zero_grad()
    (x * built.keep_probability(built.gate(x))).sum().backward()
    torch.testing.assert_close(found, built.qkv.weight.grad)


def test_the_rates_are_renewed_by_progress_alone_and_saved():
    built, x = layer(), torch.randn(64, 5, WIDTH)
    before = built.rates.clone()
    with torch.no_grad():
        built(x)
    assert torch.equal(built.rates, before) and not torch.equal(built.measured, before)
    built.set_progress(0.1)
    assert torch.equal(built.rates, built.measured)
    other = layer()
    other.load_state_dict(built.state_dict())
    assert torch.equal(other.rates, built.rates)


def test_evaluation_measures_nothing_and_keeps_what_is_kept_at_least_half_the_time():
    built, x = layer(), torch.randn(64, 5, WIDTH)
    run(built, x)
    before = built.measured.clone()
    y = built.eval()(x)
    assert torch.equal(built.measured, before)
    assert torch.equal(y, x * (built.rates >= 0.5))
    assert 0 < (built.rates >= 0.5).sum() < WIDTH


def test_padding_is_not_measured():
    built, x = layer(), torch.randn(2, 5, WIDTH)
    padding = torch.ones(2, 5, dtype=torch.bool)
    padding[0, :3] = False
    noisy = x.clone()
    noisy[0, :3] = 50.0
    other = layer()
    built(x, padding_mask=padding), other(noisy, padding_mask=padding)
    torch.testing.assert_close(built.measured, other.measured)


def test_the_rates_stay_in_float32():
    assert layer().to(torch.bfloat16).rates.dtype == torch.float32
