"""The audit against an independent count of random kernels, on types that no code of the package names."""

import datetime
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

FILE = Path(__file__).with_name("independent_count.py")
SPEC = importlib.util.spec_from_file_location("independent_count", FILE)
independent_count = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(independent_count)
AGREED = independent_count.AGREED.read_text(encoding="utf-8").split()

# Others each day, so that all have their turn in a few weeks.
TODAY = datetime.date.today().toordinal()
A_DAY = 4
# Once told wrongly: modules that the model itself replaces, NumPy's masks, attention of several kinds.
ALWAYS = ("bigbird_pegasus", "wav2vec2")


def test_at_least_sixty_types_agree_that_no_code_names():
    assert len(set(AGREED) & set(independent_count.unnamed_types())) >= 60


@pytest.mark.parametrize("turn", range(A_DAY))
def test_the_types_of_the_day_agree(turn):
    check(AGREED[(TODAY * A_DAY + turn) % len(AGREED)])


@pytest.mark.parametrize("model_type", ALWAYS)
def test_a_type_that_once_failed_agrees(model_type):
    check(model_type)


def check(model_type):
    with warnings.catch_warnings():
        # Of models that transformers itself builds with what is deprecated.
        warnings.simplefilter("ignore")
        draws, wrong = independent_count.disagreement(model_type)
    assert draws > 0
    assert wrong == {}, model_type


def test_the_count_sees_what_it_should():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.RReLU(), nn.Dropout(0.3)))
    assert independent_count.count(model, {"input": torch.ones(2, 4)}) == {"1": 1, "2.0": 1, "2.1": 1}
