"""Keras 3 layers on its torch, JAX and TensorFlow backends: dropout with a schedule, noise, learned masks.

They load no torch of their own, and compute what the layers of the same names do.
"""

import math
from typing import Any, Literal, get_args

import keras
from keras import ops

from ..errors import InputError, check_choice
from ..schedule_data import schedule_from_data, schedule_to_data
from ..schedules import Schedule, as_schedule

EvalMask = Literal["threshold", "mean", "sample"]
PenaltyName = Literal["squared", "linear", "entropy"]
Rate = float | str | Schedule


class Scheduled(keras.layers.Layer):
    """A layer that draws random numbers and has one number that a schedule may move.

    The number is a variable that is not trained, so that a compiled step reads it anew.

    Args:
        value: the number, a schedule of progress, or a schedule's text.
        moved: what the number is called.
        most: its upper bound.
        seed: of the draws; None for a random one.
    """

    def __init__(self, value: Rate, moved: str, most: float, seed: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Data, as a saved model has it, is read by the same door as numbers and schedules.
        self.schedule = schedule_from_data(value, moved) if isinstance(value, dict) else as_schedule(value)
        for bound in self.schedule.bounds():
            if not 0 <= bound <= most:
                raise InputError(f"{moved} becomes {bound:g}, but it lies between 0 and {most:g}.")
        self.seed, self.supports_masking = seed, True
        self.noise = keras.random.SeedGenerator(seed)
        self.now = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(self.schedule(0.0)), trainable=False, name=moved
        )

    def set_progress(self, progress: float) -> None:
        """Move the number to its value at a fraction of training.

        Raises:
            InputError: for a progress outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise InputError(f"progress is {progress}; it is the fraction of training done, between 0 and 1.")
        self.now.assign(self.schedule(progress))

    def uniform(self, shape: Any) -> Any:
        """Draw numbers from [0, 1), one per entry."""
        return keras.random.uniform(shape, dtype="float32", seed=self.noise)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@keras.saving.register_keras_serializable("transformer_dropout")
class Dropout(Scheduled):
    """Zero each element with probability ``p`` and scale the rest; in evaluation return the input.

    Formula: ``y = x * m / (1 - p)``, ``m ~ Bernoulli(1 - p)``; ``p = 1`` gives zeros.

    Args:
        p: probability of dropping: a number, a schedule, or its text; `Progress` moves it in ``fit``.
        seed: of the draws; None for a random one.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when p leaves [0, 1].

    Paper: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    def __init__(self, p: Rate = 0.5, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(p, "p", 1.0, seed, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return inputs
        keep = 1 - ops.cast(self.now, "float32")
        kept = ops.cast(self.uniform(ops.shape(inputs)) < keep, "float32")
        scale = ops.where(keep > 0, 1 / ops.maximum(keep, 1e-30), 0.0)
        return inputs * ops.cast(kept * scale, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"p": schedule_to_data(self.schedule), "seed": self.seed}


@keras.saving.register_keras_serializable("transformer_dropout")
class GaussianNoise(Scheduled):
    """Add noise of a given size; in evaluation return the input.

    Formula: ``y = x + e``, ``e ~ N(0, std^2)``.

    Args:
        std: standard deviation of the noise: a number, a schedule, or its text.
        seed: of the draws; None for a random one.

    Shape:
        any; the result has the input's shape and dtype.

    Raises:
        InputError: when std becomes negative or infinite.

    Paper: Bishop 1995, "Training with noise is equivalent to Tikhonov regularization".
    """

    def __init__(self, std: Rate, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(std, "std", 1e30, seed, **kwargs)

    def normal(self, shape: Any) -> Any:
        """Draw numbers from N(0, 1), one per entry."""
        return keras.random.normal(shape, dtype="float32", seed=self.noise)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return inputs
        noise = ops.cast(self.now, "float32") * self.normal(ops.shape(inputs))
        return inputs + ops.cast(noise, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"std": schedule_to_data(self.schedule), "seed": self.seed}


@keras.saving.register_keras_serializable("transformer_dropout")
class LearnedDropout(Scheduled):
    """Multiply the input by a 0/1 mask that attention and a cosine compute from it.

    Formula, with ``q, k, v = X W_q, X W_k, X W_v``::

        M = 0.5 cos(softmax(q k^T / sqrt(d)) v + shift) + 0.5
        training:    y = X * 1[u < M],  u ~ U[0, 1), the gradient passing straight through to M
        evaluation:  y = X * 1[M >= 0.5]        (or X * M, or sampled)

    A training call adds ``weight * penalty`` to the model's losses.

    Args:
        heads: attention heads; they divide the input's channels.
        shift: initial value of the shift vector, in [0, pi].
        causal: whether a token's mask depends only on itself and the tokens before it.
        eval_mask: "threshold" as published, "mean" for ``X * M``, "sample" to keep sampling.
        penalty: "squared" for ``mean(M^2 / 2)``, "linear" for ``mean(M)``, or the mean binary "entropy".
        weight: of the penalty: a number, a schedule, or its text; 0 for none.
        detach: whether the mask's gradient stops at its input.
        seed: of the draws; None for a random one.

    Shape:
        inputs: (batch, tokens, width), with Keras's mask of real tokens where there is one.

    Raises:
        InputError: for heads that do not divide the width, a shift outside [0, pi], an unknown word, a
            negative weight.

    Paper: Yan 2024, "Learned Dropout".
    """

    def __init__(
        self,
        heads: int,
        *,
        shift: float = 0.0,
        causal: bool = True,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName = "squared",
        weight: Rate = 0.0,
        detach: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight, "weight", 1e30, kwargs.pop("seed", None), **kwargs)
        if not 0 <= shift <= math.pi:
            raise InputError(f"shift is {shift}, but it lies between 0 and pi (3.14159...).")
        check_choice(eval_mask, get_args(EvalMask), "eval_mask")
        check_choice(penalty, get_args(PenaltyName), "penalty")
        self.heads, self.first_shift, self.causal, self.detach = heads, float(shift), causal, detach
        self.eval_mask, self.penalty = eval_mask, penalty

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        if self.heads < 1 or width % self.heads:
            raise InputError(
                f"A width of {width} cannot be split among {self.heads} heads; choose heads that divide "
                f"{width}."
            )
        normal = keras.initializers.RandomNormal(stddev=0.02, seed=self.seed)
        self.qkv = self.add_weight(shape=(width, 3 * width), initializer=normal, name="qkv")
        start = keras.initializers.Constant(self.first_shift)
        self.shift = self.add_weight(shape=(width,), initializer=start, name="shift")

    def keep_probability(self, inputs: Any, mask: Any = None) -> Any:
        """Return ``M``, the probability of keeping each element, in float32."""
        x = ops.stop_gradient(inputs) if self.detach else inputs
        width, tokens = x.shape[-1], ops.shape(x)[1]
        joint = ops.reshape(
            ops.matmul(x, ops.cast(self.qkv, x.dtype)), (-1, tokens, 3, self.heads, width // self.heads)
        )
        query, key, value = (ops.cast(part, "float32") for part in ops.unstack(joint, 3, axis=2))
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key) * (width // self.heads) ** -0.5
        order = ops.arange(tokens)
        visible = (
            order[:, None] >= order[None, :] if self.causal else ops.ones((tokens, tokens), dtype="bool")
        )
        if mask is not None:
            # A padding query may see no key at all; letting it see itself keeps its row free of NaN.
            itself = order[:, None] == order[None, :]
            visible = ops.logical_or(
                ops.logical_and(visible, ops.cast(mask, "bool")[:, None, None, :]), itself
            )
        weights = ops.softmax(ops.where(visible, scores, -1e30), axis=-1)
        gate = ops.reshape(ops.einsum("bhqk,bkhd->bqhd", weights, value), (-1, tokens, width))
        return 0.5 * ops.cos(gate + ops.cast(self.shift, "float32")) + 0.5

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        soft = self.keep_probability(inputs, mask)
        if training:
            self.add_loss(ops.cast(self.now, "float32") * self.penalty_of(soft, mask))
        if not training and self.eval_mask == "mean":
            return inputs * ops.cast(soft, inputs.dtype)
        drawn = training or self.eval_mask == "sample"
        hard = ops.cast(self.uniform(ops.shape(soft)) < soft if drawn else soft >= 0.5, "float32")
        # The difference is exactly 0, so the mask stays exactly 0 or 1.
        return inputs * ops.cast(hard + (soft - ops.stop_gradient(soft)), inputs.dtype)

    def penalty_of(self, soft: Any, mask: Any) -> Any:
        """Return the penalty of the real tokens' ``M``."""
        if self.penalty == "linear":
            values = soft
        elif self.penalty == "squared":
            values = ops.square(soft) / 2
        else:
            margin = 2.0**-23
            inside = ops.clip(soft, margin, 1 - margin)
            values = -(inside * ops.log(inside) + (1 - inside) * ops.log1p(-inside))
        if mask is None:
            return ops.mean(values)
        real = ops.cast(mask, "float32")
        return ops.sum(ops.mean(values, axis=-1) * real) / ops.maximum(ops.sum(real), 1.0)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "heads": self.heads,
            "shift": self.first_shift,
            "causal": self.causal,
            "eval_mask": self.eval_mask,
            "penalty": self.penalty,
            "weight": schedule_to_data(self.schedule),
            "detach": self.detach,
            "seed": self.seed,
        }


class Progress(keras.callbacks.Callback):
    """Moves every schedule of a model while ``fit`` trains it, to the fraction of the steps done."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Set by `fit` before the first batch.
        params: Any = self.params
        model: Any = self.model
        done = self.epoch + (batch / params["steps"] if params.get("steps") else 0)
        # Also layers inside other layers.
        for layer in model._flatten_layers():
            if isinstance(layer, Scheduled):
                layer.set_progress(min(1.0, done / params["epochs"]))
