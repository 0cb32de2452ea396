"""The Keras layers against ours, on the backend that KERAS_BACKEND names; test_keras.py runs this file.

TensorFlow, which is not among the tests' packages: pip install tensorflow-cpu, then
KERAS_BACKEND=tensorflow python -m pytest tests/integrations/keras_checks.py
"""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from keras import ops

import transformer_dropout as td
from transformer_dropout import functional
from transformer_dropout.integrations import keras as layers

pytestmark = pytest.mark.filterwarnings("ignore")  # raised inside Keras and its backends

X = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
PADDING = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype="bool")


def numbers(x):
    return ops.convert_to_numpy(x)


def close(ours, theirs):
    np.testing.assert_allclose(numbers(theirs), ours.detach().numpy(), rtol=0, atol=1e-6)


def pair(**options):
    """Return our layer and Keras's with the same weights."""
    torch.manual_seed(0)
    ours = td.LearnedDropout(8, 2, **options)
    torch.nn.init.normal_(ours.qkv.weight)
    theirs = layers.LearnedDropout(2, weight=1.0, **options)
    theirs.build(X.shape)
    theirs.qkv.assign(ours.qkv.weight.detach().numpy().T)
    return ours, theirs


@pytest.fixture
def same_noise(monkeypatch):
    """Let both draw the same numbers."""
    noise = np.random.default_rng(1).uniform(size=X.shape).astype("float32")
    monkeypatch.setattr(layers.Scheduled, "uniform", lambda self, shape: ops.convert_to_tensor(noise))
    monkeypatch.setattr(
        functional,
        "sampled_mask",
        lambda keep: functional.straight_through((torch.tensor(noise) < keep).to(keep.dtype), keep),
    )


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_is_ours_at_the_same_mask(p):
    layer = layers.Dropout(p, seed=0)
    y = numbers(layer(X, training=True))
    kept = torch.tensor(y != 0)
    close(torch.tensor(X) * kept * functional.inverse_keep(p), y)
    if p == 0.25:
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.12)
    np.testing.assert_array_equal(numbers(layer(X, training=False)), X)


def test_noise_is_ours_at_the_same_draw(monkeypatch):
    noise = np.random.default_rng(1).normal(size=X.shape).astype("float32")
    monkeypatch.setattr(layers.GaussianNoise, "normal", lambda self, shape: ops.convert_to_tensor(noise))
    layer = layers.GaussianNoise(0.3)
    close(torch.tensor(X) + 0.3 * torch.tensor(noise), layer(X, training=True))
    np.testing.assert_array_equal(numbers(layer(X, training=False)), X)


def test_noise_has_the_size_that_was_asked_for():
    y = numbers(layers.GaussianNoise(0.3, seed=0)(np.zeros((64, 64), "float32"), training=True))
    assert y.std() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("eval_mask", ["threshold", "mean"])
def test_a_learned_mask_is_ours(causal, eval_mask):
    ours, theirs = pair(shift=1.0, causal=causal, eval_mask=eval_mask)
    probability = ours.keep_probability(ours.gate(torch.tensor(X)))
    close(probability, theirs.keep_probability(X))
    close(ours.eval()(torch.tensor(X)), theirs(X, training=False))
    assert 0.1 < probability.mean().item() < 0.9


@pytest.mark.parametrize("penalty", ["squared", "linear", "entropy"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_drawn_mask_and_its_penalty_are_ours(same_noise, penalty, padded):
    ours, theirs = pair(shift=1.0, penalty=penalty)
    ours.observer = lambda keep, mask: None  # step by step, where the draw can be given
    mask = PADDING if padded else None
    y = ours.train()(torch.tensor(X), padding_mask=None if mask is None else torch.tensor(mask))
    found = theirs(X, mask=mask, training=True)
    real = PADDING if padded else np.ones_like(PADDING)
    close(y[torch.tensor(real)], numbers(found)[real])
    assert set(np.unique(numbers(found)[X != 0] != 0)) == {True, False}
    close(ours.take_penalty(), theirs.losses[0])


def gradient(loss, layer):
    """Return the gradients of a loss of ``layer(X)`` for its trained weights, on any backend."""
    if keras.backend.backend() == "torch":
        loss(layer(X, training=True)).backward()
        return [weight.value.grad.numpy() for weight in layer.trainable_weights]
    if keras.backend.backend() == "jax":
        import jax

        def of(trained):
            fixed = [weight.value for weight in layer.non_trainable_variables]
            out, _ = layer.stateless_call(trained, fixed, X, training=True)
            return loss(out)

        return jax.grad(of)([weight.value for weight in layer.trainable_weights])
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss(layer(X, training=True))
    return tape.gradient(value, [weight.value for weight in layer.trainable_weights])


def test_the_gradient_passes_straight_through_as_ours(same_noise):
    ours, theirs = pair(shift=1.0)
    ours.observer = lambda keep, mask: None
    ours.train()(torch.tensor(X)).square().sum().backward()
    by_qkv, by_shift = gradient(lambda y: ops.sum(ops.square(y)), theirs)
    np.testing.assert_allclose(numbers(by_qkv).T, ours.qkv.weight.grad.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numbers(by_shift), ours.shift.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_fit_moves_the_schedules_and_trains_the_masks():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((6, 8)),
            layers.LearnedDropout(2, shift=1.0, weight="0,0.1"),
            layers.Dropout("0.4,0"),
            keras.layers.Dense(1),
        ]
    )
    before = [numbers(weight).copy() for weight in model.layers[0].trainable_weights]
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append([float(numbers(layer.now)) for layer in self.model.layers[:2]])

    model.compile(optimizer="adam", loss="mse")
    x = np.random.default_rng(0).normal(size=(32, 6, 8)).astype("float32")
    # Two epochs of four steps.
    model.fit(x, x[..., :1], batch_size=8, epochs=2, verbose=0, callbacks=[layers.Progress(), Watch()])
    assert [rates[1] for rates in seen] == pytest.approx(
        [0.4 * (1 - step / 8) for step in range(8)], abs=1e-6
    )
    assert seen[4][0] == pytest.approx(0.05, abs=1e-6)
    after = [numbers(weight) for weight in model.layers[0].trainable_weights]
    assert all(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert np.array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_saved_model_comes_back_with_its_schedules(tmp_path):
    model = keras.Sequential(
        [
            keras.layers.Input((6, 8)),
            layers.LearnedDropout(2, shift=1.0, weight=0.1),
            layers.Dropout("0.4,0"),
            layers.GaussianNoise(td.Cosine(0.1, 0.0)),
        ]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
    for one, other in zip(model.layers, loaded.layers, strict=True):
        assert one.schedule == other.schedule
        assert one.get_config() == other.get_config()


def test_what_cannot_be_is_refused():
    for make, sentence in (
        (lambda: layers.Dropout(1.5), "p becomes 1.5, but it lies between 0 and 1"),
        (lambda: layers.GaussianNoise(-1.0), "std becomes -1"),
        (lambda: layers.LearnedDropout(3).build((2, 6, 8)), "choose heads that divide 8"),
        (lambda: layers.LearnedDropout(2, shift=4.0), "shift is 4.0"),
        (lambda: layers.LearnedDropout(2, eval_mask="mode"), "eval_mask is 'mode'"),
        (lambda: layers.Dropout(0.1).set_progress(2), "progress is 2"),
    ):
        with pytest.raises(td.InputError, match=sentence):
            make()


def test_the_code_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "pages" / "from_scratch.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "keras" in block
    )
    scope = {"x": np.ones((8, 6, 8), "float32"), "y": np.ones((8, 6, 1), "float32")}
    exec(code, scope)
    # Two epochs of one step: the last began at one half.
    assert [float(numbers(layer.now)) for layer in scope["model"].layers[:2]] == pytest.approx([0.05, 0.15])
