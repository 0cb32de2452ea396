"""Every number of a training config at both ends of its range, and keys that do not go together."""

import math

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.training_config import (
    EarlyStoppingConfig,
    ElasticNetConfig,
    ExpertsConfig,
    SelfTunedConfig,
    TrainingConfig,
    check_schedule,
    check_share,
)

SCHEDULES = ("weight_decay", "l1", "l2", "proximal_l1", "rdrop", "l2_sp")
CHECKED = ("lr", *SCHEDULES, "ema", "token_noise")


@pytest.mark.parametrize(
    "keys",
    [
        dict.fromkeys(("steps", "batch", "accumulation", "eval_every", "probe_windows"), 1),
        dict.fromkeys(("eval_windows", "decay_steps"), 1),
        dict.fromkeys(("lr", "min_lr", "warmup_steps", *SCHEDULES, "ema", "token_noise"), 0),
        dict.fromkeys(SCHEDULES, 7.5),
        {"ema": 0.999, "token_noise": "0,0.99", "label_smoothing": 0.99},
        {"lr": 1e-4, "min_lr": 1e-4},
        {"lr": "1e-3,0", "min_lr": 1.0},
        {"folds": 2, "fold": 1},
        {"keep_checkpoints": 2, "clip": 1e-9},
        {"clip": None, "beta1": 0.0, "beta2": 0.0},
        {"rdrop": 1.0, "rdrop_blocks": 1},
        {"rdrop": 1.0, "rdrop_view": "learned", "compile": True},
        {"rdrop": 1.0, "rdrop_view": "token_noise", "token_noise": 0.1},
        {"held_out": 0.99, "held_out_every": 2},
        {"cross_fit": True, "held_out_every": 2, "batch": 2},
        {"self_tuned": SelfTunedConfig(share=0.99, every=1, step=1e-9, delta=1e-9)},
        {"early_stopping": EarlyStoppingConfig(patience=1, min_delta=0.0)},
        {"elastic_net": ElasticNetConfig(weight="0,1", l1_ratio=1.0)},
        {"elastic_net": ElasticNetConfig(weight=0.0, l1_ratio=0.0)},
        {"experts": ExpertsConfig(experts=3, top_k=3, weight=0.0)},
    ],
)
def test_what_is_in_its_range_is_taken(keys):
    config = TrainingConfig(**keys)
    assert all(getattr(config, key) == value for key, value in keys.items())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        *(({key: 0}, "at least 1") for key in ("steps", "batch", "accumulation", "eval_every")),
        ({"probe_windows": 0}, "at least 1"),
        *(({key: 0}, "at least 1, or null") for key in ("eval_windows", "decay_steps")),
        *(({key: -1e-9}, rf"^training\.{key} becomes -1e-09, .* at least 0 all") for key in CHECKED),
        ({"lr": math.inf}, "inf"),
        ({"ema": 1.0}, "a share from 0 to below 1"),
        ({"token_noise": "1,0"}, "a share from 0 to below 1"),
        ({"label_smoothing": 1.0}, "a share from 0 to below 1"),
        ({"label_smoothing": -0.1}, "a share from 0 to below 1"),
        ({"min_lr": -1e-9}, "a finite number from 0 on"),
        ({"min_lr": math.inf}, "a finite number from 0 on"),
        ({"warmup_steps": -1}, "a finite number from 0 on"),
        ({"folds": 1}, "2 folds or more"),
        ({"folds": -1}, "2 folds or more"),
        ({"folds": 2, "fold": 2}, "2 folds or more"),
        ({"folds": 2, "fold": -1}, "2 folds or more"),
        ({"fold": 1}, "2 folds or more"),
        ({"keep_checkpoints": 1}, "at least 2"),
        ({"clip": 0}, "above 0; null is no clipping"),
        ({"beta1": 1}, r"beta1 is 1, but it lies in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2 is -0\.1, but it lies in \[0, 1\)"),
        ({"lr": 1e-5}, r"min_lr 0\.0001 is above training\.lr 1e-05"),
        ({"rdrop_view": "learned"}, "need a weight"),
        ({"rdrop_blocks": 1}, "need a weight"),
        ({"rdrop": 1.0, "rdrop_view": "token_noise"}, "token_noise needs a rate"),
        ({"rdrop": 1.0, "rdrop_blocks": 0}, "at least 1, or null"),
        ({"rdrop": 1.0, "rdrop_blocks": 1, "compile": True}, "compile: false"),
        ({"rdrop": 1.0, "rdrop_blocks": 1, "rdrop_view": "learned"}, "goes with rdrop_view: dropout"),
        ({"held_out": 1.0}, "a share from 0 to below 1"),
        ({"held_out": -0.1}, "a share from 0 to below 1"),
        ({"held_out_every": 0}, "at least 1"),
        ({"held_out_every": 2}, "held_out_every needs a share"),
        ({"held_out": 0.1, "cross_fit": True}, r"^training\.held_out and training\.cross_fit do not go"),
        ({"cross_fit": True, "batch": 3}, r"training\.batch 3 must be even"),
    ],
)
def test_what_is_not_is_refused(keys, words):
    with pytest.raises(InputError, match=words):
        TrainingConfig(**keys)


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        (EarlyStoppingConfig, {"patience": 0}, "patience of at least 1"),
        (EarlyStoppingConfig, {"min_delta": -1e-9}, "min_delta of at least 0"),
        (ElasticNetConfig, {"weight": -1}, r"elastic_net\.weight becomes -1"),
        (ElasticNetConfig, {"weight": 1, "l1_ratio": 1.1}, "a share from 0 to 1"),
        (ElasticNetConfig, {"weight": 1, "l1_ratio": -0.1}, "a share from 0 to 1"),
        (SelfTunedConfig, {"share": 0}, "strictly between 0 and 1"),
        (SelfTunedConfig, {"share": 1}, "strictly between 0 and 1"),
        (SelfTunedConfig, {"every": 0}, r"self_tuned\.every is 0"),
        (SelfTunedConfig, {"step": 0.0}, r"self_tuned\.step is 0"),
        (SelfTunedConfig, {"delta": 0.0}, r"self_tuned\.delta is 0"),
        (ExpertsConfig, {"top_k": 5}, "from 1 to 4"),
        (ExpertsConfig, {"top_k": 0}, "from 1 to 4"),
        (ExpertsConfig, {"weight": "1,-1"}, r"experts\.weight becomes -1"),
    ],
)
def test_a_section_of_its_own_is_checked_too(kind, keys, words):
    with pytest.raises(InputError, match=words):
        kind(**keys)


def test_a_schedule_is_checked_all_the_time_and_by_its_key():
    check_schedule("0,5@0.5,0", "key")
    check_share("0,0.5@0.5,0", "key")
    with pytest.raises(InputError, match=r"^key becomes -5, but"):
        check_schedule("0,-5@0.5,0", "key")
    with pytest.raises(InputError, match=r"^key becomes 1, but it is a share"):
        check_share("0,1@0.5,0", "key")


def test_schedules_are_made_of_the_keys():
    config = TrainingConfig(l2="0,1", experts=ExpertsConfig(weight="0,0.5"))
    assert [config.schedule("l2")(progress) for progress in (0, 0.5, 1)] == [0, 0.5, 1]
    assert config.experts.schedule(1.0) == 0.5
    assert TrainingConfig(held_out=0.1).trained_apart == ["held_out"]
    assert TrainingConfig().trained_apart == []
