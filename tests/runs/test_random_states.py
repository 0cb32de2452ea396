"""The states of the generators that training draws from, taken and put back."""

import torch

from transformer_dropout.runs.random_states import random_states, set_random_states


def test_what_is_drawn_comes_again():
    states = random_states(torch.device("cpu"))
    assert states.keys() == {"cpu"}
    drawn = torch.rand(3)
    set_random_states(states)
    assert torch.rand(3).equal(drawn)


def test_a_gpu_has_a_state_of_its_own(monkeypatch):
    told, state = [], torch.ones(2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: told.append(device) or state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: told.append(given))
    device = torch.device("cuda", 1)
    states = random_states(device)
    assert states["cuda"] is state
    set_random_states(states)
    assert told == [device, (state,)]
