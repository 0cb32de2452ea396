"""Training windows with neighbours swapped and ends cut off."""

from dataclasses import replace

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run import prepare
from transformer_dropout.tasks.language.augment import TextAugment, augmented

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
TEXT = torch.arange(40 * 101).view(40, 101)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_neighbours_change_places_at_the_rate_and_nothing_else_moves():
    moved = swaps = 0
    for seed in range(20):
        found = augmented(TEXT, TextAugment(swap=0.1), generator(seed))
        assert found.sort(dim=1).values.equal(TEXT)
        shift = found - TEXT
        assert set(shift.unique().tolist()) <= {-1, 0, 1}
        swaps += (shift == 1).sum().item()
        moved += (shift != 0).sum().item()
    assert moved == 2 * swaps
    assert swaps / (20 * 40 * 100) == pytest.approx(0.1, abs=0.01)


def test_windows_are_cut_to_what_stands_together_and_never_below_the_share():
    lengths = set()
    for seed in range(60):
        found = augmented(TEXT, TextAugment(crop=0.5), generator(seed))
        assert (found[:, 1:] - found[:, :-1] == 1).all()
        lengths.add(found.shape[1])
    assert min(lengths) >= round(0.5 * 101) and max(lengths) <= 101
    assert len(lengths) > 20


def test_targets_stay_one_token_later_and_evaluation_sees_whole_windows(tiny):
    config = tiny()
    config = replace(config, data=replace(config.data, augment=TextAugment(swap=0.2, crop=0.5)))
    training = Training(config, prepare(config), ALONE)
    whole = Training(tiny(), prepare(tiny()), ALONE)
    batch = training.training_batch(0)
    tokens, targets = batch.inputs["tokens"], batch.targets
    assert tokens[:, 1:].equal(targets[:, :-1]) and batch.items == targets.numel()
    assert not tokens.equal(whole.training_batch(0).inputs["tokens"][:, : tokens.shape[1]])
    assert training.training_batch(0).targets.equal(targets)
    assert training.evaluate()["val_loss"] == whole.evaluate()["val_loss"]
    training.advance()


def test_without_the_key_the_fingerprint_is_as_before_and_with_it_another(tiny):
    config = tiny()
    assert "augment" not in config.to_data()["data"]
    assert (
        replace(config, data=replace(config.data, augment=TextAugment(swap=0.1))).fingerprint()
        != config.fingerprint()
    )


@pytest.mark.parametrize(("name", "value"), [("swap", -0.1), ("swap", 0.6), ("crop", -0.1), ("crop", 1.0)])
def test_what_is_no_share_is_refused(name, value):
    with pytest.raises(InputError, match=rf"data\.augment\.{name} is {value}"):
        TextAugment(**{name: value})
