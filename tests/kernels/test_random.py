"""The counter-based numbers: the same bits everywhere, and as random as a mask needs."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from transformer_dropout.kernels.random import draw_key, random_bits, steps, uniform

KEYS = [(0, 0), (1, 0), (0, 1), (-1, -1), (649541621, 1591496514), (-(2**31), 2**31 - 1)]


def key(first, second):
    return torch.tensor([first, second], dtype=torch.int32)


def by_hand(first, second, index):
    """The formula in Python's own integers."""
    word = 2**32 - 1
    x = (index * 0x9E3779B9 + first) & word
    x ^= x >> 16
    x = (x * 0x21F0AAAD) & word
    x ^= second & word
    x ^= x >> 15
    x = (x * 0x735A2D97) & word
    return x ^ (x >> 15)


@pytest.mark.parametrize("words", KEYS)
@pytest.mark.parametrize("start", [0, 12_345, 2**31 - 3, 2**32 - 3])
def test_the_bits_are_those_of_the_formula(words, start):
    bits = random_bits(key(*words), 6, start)
    assert bits.dtype == torch.int32
    assert [b & 0xFFFFFFFF for b in bits.tolist()] == [by_hand(*words, start + i) for i in range(6)]
    assert uniform(key(*words), 6, start).tolist() == [
        (by_hand(*words, start + i) >> 8) / 2**24 for i in range(6)
    ]


def test_native_loops_make_the_same_numbers():
    pytest.importorskip("numba")
    from transformer_dropout.kernels.native._compiled import compiled
    from transformer_dropout.kernels.native.random import element_bits, element_uniform, key_words

    @compiled
    def fill(bits, numbers, start, first, second):
        for i in range(bits.size):
            bits[i] = element_bits(start + i, first, second)
            numbers[i] = element_uniform(start + i, first, second)

    for words in KEYS:
        for start in (0, 5, 2**31 - 500, 2**32 - 500):
            bits, numbers = np.empty(1000, dtype=np.uint32), np.empty(1000, dtype=np.float32)
            fill(bits, numbers, start, *key_words(key(*words)))
            assert torch.equal(torch.from_numpy(bits.view(np.int32)), random_bits(key(*words), 1000, start))
            assert torch.equal(torch.from_numpy(numbers), uniform(key(*words), 1000, start))


def test_chunks_make_the_same_numbers_as_one_pass():
    whole = uniform(key(3, 4), 1000)
    made = steps(700)
    chunks = [uniform(key(3, 4), 300, 0, made), uniform(key(3, 4), 700, 300, made)]
    assert torch.equal(whole, torch.cat(chunks))


def test_a_compiled_graph_makes_the_same_numbers():
    compiled = torch.compile(uniform, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(key(3, 4), 1000), uniform(key(3, 4), 1000))


def test_vmap_makes_the_numbers_of_each_key():
    keys = torch.tensor(KEYS, dtype=torch.int32)
    together = torch.func.vmap(lambda k: uniform(k, 50))(keys)
    assert torch.equal(together, torch.stack([uniform(k, 50) for k in keys]))


def test_the_key_comes_from_torchs_generator():
    torch.manual_seed(1)
    first, second = draw_key(), draw_key()
    torch.manual_seed(1)
    assert torch.equal(draw_key(), first)
    assert not torch.equal(first, second)
    drawn = torch.stack([draw_key() for _ in range(200)])
    assert drawn.min() < -(2**30)
    assert drawn.max() > 2**30


@pytest.mark.parametrize("words", KEYS)
def test_the_numbers_are_uniform(words):
    numbers = uniform(key(*words), 1 << 20)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=1024, min=0, max=1).double().numpy()
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    # The number of values in small steps at either end, where a small probability is compared.
    for below in (1e-2, 1e-3, 1e-4):
        for share in ((numbers < below).sum(), (numbers >= 1 - below).sum()):
            expected = below * len(numbers)
            assert abs(share - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("bit", range(8, 32))
def test_every_bit_that_is_used_is_set_half_of_the_time(bit):
    ones = (random_bits(key(7, 8), 1 << 18) >> bit).bitwise_and(1).sum().item()
    assert abs(ones - 2**17) < 5 * 2**8


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 144, 156, 1024, 65536, 28_800])
def test_neighbours_in_a_row_and_in_a_column_are_independent(lag):
    numbers = uniform(key(11, 12), 1 << 20).double() - 0.5
    correlation = (numbers[lag:] * numbers[:-lag]).mean().item() * 12
    assert abs(correlation) < 5 / math.sqrt(len(numbers) - lag)


def test_pairs_fill_the_square():
    numbers = uniform(key(13, 14), 1 << 20)
    cells = (numbers[0::2] * 32).int() * 32 + (numbers[1::2] * 32).int()
    counts = torch.bincount(cells, minlength=1024).double().numpy()
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("shift", [0, 1, 144])
def test_masks_of_two_keys_are_independent(shift):
    torch.manual_seed(0)
    keys = [draw_key() for _ in range(8)]
    keys += [keys[0] + key(difference, 0) for difference in (1, 65536, -(2**31))]
    drawn = [uniform(k, 1 << 18).double() - 0.5 for k in keys]
    for a, b in itertools.combinations(drawn, 2):
        correlation = (a[shift:] * b[: len(b) - shift]).mean().item() * 12
        assert abs(correlation) < 5 / math.sqrt(len(a))
