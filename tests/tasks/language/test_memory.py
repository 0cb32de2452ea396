"""What one attention remembers."""

from types import SimpleNamespace

import torch

from transformer_dropout import functional
from transformer_dropout.tasks.language.memory import Memory


def test_one_token_mixes_what_whole_attention_mixes():
    extent, generator = SimpleNamespace(length=0, capacity=9), torch.Generator().manual_seed(0)
    memory = Memory(extent)
    qkv = torch.randn(2, 9, 3 * 12, generator=generator, dtype=torch.float64)
    expected = functional.self_attention(qkv, 3, causal=True)
    first = functional.self_attention(qkv[:, :4], 3, causal=True, past=memory)
    torch.testing.assert_close(first, expected[:, :4])
    for extent.length in range(4, 9):
        mixed = memory.mix(qkv[:, extent.length], None)
        torch.testing.assert_close(mixed, expected[:, extent.length])
    # Set back, it forgets the last ones and takes others.
    extent.length = 3
    again = functional.self_attention(qkv[:, 3:6], 3, causal=True, past=memory)
    torch.testing.assert_close(again, expected[:, 3:6])


def test_another_batch_takes_other_memory_and_the_same_batch_the_same():
    extent = SimpleNamespace(length=0, capacity=5)
    memory, places = Memory(extent), []
    for batch in (2, 2, 3):
        keys, values = memory.extend(torch.ones(batch, 2, 4, 6), torch.zeros(batch, 2, 4, 6))
        assert keys.shape == values.shape == (batch, 2, 4, 6)
        assert keys.all() and not values.any()
        places.append(memory.both.data_ptr())
    assert places[0] == places[1]
    assert memory.both.shape == (2, 3, 2, 5, 6)
