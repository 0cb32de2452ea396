"""The published form of a run config, and its translation into the project's own.

Source: the appendix of Yan 2024, "Learned Dropout" (https://github.com/yiphei/yif-AI). Nothing else in the
project knows these names.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import InputError
from ...runs.dataclass_from_data import STRICT_KEYS, dataclass_from_data
from ...yaml_file import KeyPath

# What the published runs multiply a penalty by; their code's own default, which none of them uses, is 1.
COEFFICIENT = 0.1
LAYERS = {
    "NOISE_AND_LINEAR": "LearnedDropout",
    "SIGMOID": "LearnedSigmoidDropout",
    "SIGMOID_DETACH": "LearnedSigmoidStraightThrough",
}
DROPOUT_SITES = ("embedding", "attention_weights", "attention_output", "mlp_output")


@dataclass(frozen=True, kw_only=True)
class PublishedCoefficient:
    """``min(max_coeff, min_coeff + exp(exp_rate * step) - 1)``, or ``max_coeff`` without an ``exp_rate``.

    With an ``exp_rate`` alone, ``min_coeff`` is 0.
    """

    max_coeff: float = 1.0
    min_coeff: float | None = None
    exp_rate: float | None = None

    def __post_init__(self) -> None:
        if self.min_coeff is not None and self.exp_rate is None:
            raise InputError(
                "min_coeff needs exp_rate, which says how fast the coefficient grows from there."
            )
        if self.min_coeff is not None and not 0 <= self.min_coeff < self.max_coeff:
            raise InputError(
                f"min_coeff is {self.min_coeff}; it lies between 0 and max_coeff {self.max_coeff}."
            )
        if self.exp_rate is not None and not 0 < self.exp_rate < 1:
            raise InputError(f"exp_rate is {self.exp_rate}; it lies between 0 and 1.")

    def weight(self, steps: int) -> float | dict[str, Any]:
        """Return the weight as a schedule over the progress of so many steps."""
        if self.exp_rate is None:
            return self.max_coeff
        start = self.min_coeff or 0.0
        # expm1(exp_rate * step) reaches max - min at this step.
        reach = math.log1p(self.max_coeff - start)
        until = reach / self.exp_rate / steps
        return {"exponential": {"start": start, "end": self.max_coeff, "rate": reach, "until": until}}


@dataclass(frozen=True, kw_only=True)
class PublishedLearnedDropout:
    """The published ``learned_dropout_config``."""

    dropout_input_type: Literal["HIDDEN_STATE", "EMBED"] = "HIDDEN_STATE"
    mask_rounding_type: Literal["NOISE_AND_LINEAR", "SIGMOID", "SIGMOID_DETACH"] = "NOISE_AND_LINEAR"
    n_head: int | None = None
    shift_init: float = 0.0
    sigmoid_scale: float | None = None
    use_bias: bool | None = None
    use_detached_input: bool = False

    def __post_init__(self) -> None:
        drawn = self.mask_rounding_type == "NOISE_AND_LINEAR"
        if drawn and self.sigmoid_scale is not None:
            raise InputError(
                "sigmoid_scale is set, but mask_rounding_type is NOISE_AND_LINEAR; take it out, or write "
                "SIGMOID or SIGMOID_DETACH."
            )
        if not drawn and self.dropout_input_type == "EMBED":
            raise InputError(
                f"dropout_input_type EMBED with mask_rounding_type {self.mask_rounding_type} is in no "
                "published run and not here; write HIDDEN_STATE, or NOISE_AND_LINEAR."
            )


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """The published ``model_config``."""

    context_size: int
    n_embed: int
    n_head: int
    n_layer: int
    dropout_rate: float = 0.0
    use_bias: bool = False
    l1_norm_penalty_type: Literal["SQUARED", "LINEAR"] | None = None
    dropout_l1_norm_coeff_config: PublishedCoefficient | None = None
    dropout_entropy_coeff_config: PublishedCoefficient | None = None
    use_dropout_entropy_penalty: bool = False
    use_dropout_l1_norm_penalty: bool = False
    learned_dropout_config: PublishedLearnedDropout | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout_rate <= 1:
            raise InputError(f"dropout_rate is {self.dropout_rate}, but a probability lies between 0 and 1.")
        if self.n_embed % self.n_head:
            raise InputError(f"n_embed {self.n_embed} is not divisible by n_head {self.n_head}.")
        if self.use_dropout_entropy_penalty and self.use_dropout_l1_norm_penalty:
            raise InputError(
                "Both use_dropout_entropy_penalty and use_dropout_l1_norm_penalty are true; "
                "a layer has one penalty."
            )
        has_type = self.l1_norm_penalty_type is not None
        if has_type != self.use_dropout_l1_norm_penalty:
            raise InputError(
                "l1_norm_penalty_type is to be set exactly when use_dropout_l1_norm_penalty is true."
            )
        for kind, used in (
            ("l1_norm", self.use_dropout_l1_norm_penalty),
            ("entropy", self.use_dropout_entropy_penalty),
        ):
            if getattr(self, f"dropout_{kind}_coeff_config") is not None and not used:
                raise InputError(
                    f"dropout_{kind}_coeff_config is set, but use_dropout_{kind}_penalty is not true; take "
                    "one out."
                )
        penalised = self.use_dropout_l1_norm_penalty or self.use_dropout_entropy_penalty
        if penalised and self.learned_dropout_config is None:
            raise InputError("A penalty is used, but learned_dropout_config is missing.")


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A published run config."""

    __pydantic_config__ = STRICT_KEYS

    model_config: PublishedModel
    batch_size: int
    beta1: float
    beta2: float
    decay_lr: bool
    est_interval: int
    est_steps: int
    gradient_accumulation_steps: int
    lr: float
    lr_decay_iters: int
    min_lr: float
    train_steps: int
    warmup_iters: int
    weight_decay: float


def is_published(data: dict[str, Any]) -> bool:
    """Return whether a run config is in the published form."""
    return "model_config" in data


def from_published(data: dict[str, Any], places: dict[KeyPath, str], *, name: str) -> dict[str, Any]:
    """Return a published run config as plain data in the project's own form.

    The published runs evaluate on ``est_steps`` batches; here those are evenly spread windows. The text
    that they were trained on is not part of the config: the project's default corpus takes its place, with
    the GPT-2 tokenizer that the published parameter counts rest on, or as many ids where it is not at hand.

    Raises:
        InputError: for an unknown key or a value that does not fit.
    """
    run = dataclass_from_data(PublishedRun, data, places)
    model = run.model_config
    windows = run.est_steps * run.batch_size
    return {
        "name": name,
        "model": {
            "width": model.n_embed,
            "heads": model.n_head,
            "blocks": model.n_layer,
            "context": model.context_size,
            "bias": model.use_bias,
        },
        "recipe": learned_rules(model, run.train_steps) + dropout_rules(model),
        "data": {"source": "stdlib-docs", "tokenizer": "gpt2-or-bpe"},
        "training": {
            "steps": run.train_steps,
            "batch": run.batch_size,
            "accumulation": run.gradient_accumulation_steps,
            "lr": run.lr,
            "min_lr": run.min_lr if run.decay_lr else run.lr,
            "warmup_steps": run.warmup_iters,
            "decay_steps": run.lr_decay_iters,
            "weight_decay": run.weight_decay,
            "beta1": run.beta1,
            "beta2": run.beta2,
            "eval_every": run.est_interval,
            "eval_windows": windows,
            "probe_windows": windows,
        },
    }


def dropout_rules(model: PublishedModel) -> list[dict[str, Any]]:
    """Return the rules of the standard dropout; a learned mask takes its place after the MLP."""
    if model.dropout_rate == 0:
        return []
    sites = DROPOUT_SITES if model.learned_dropout_config is None else DROPOUT_SITES[:-1]
    return [{"select": site, "layer": "Dropout", "p": model.dropout_rate} for site in sites]


def learned_rules(model: PublishedModel, steps: int) -> list[dict[str, Any]]:
    """Return the rule of the learned mask, if there is one."""
    learned = model.learned_dropout_config
    if learned is None:
        return []
    hidden = learned.dropout_input_type == "HIDDEN_STATE"
    rule: dict[str, Any] = {
        "select": "mlp_output",
        "layer": LAYERS[learned.mask_rounding_type] if hidden else "PrecomputedLearnedDropout",
        "heads": model.n_head if learned.n_head is None else learned.n_head,
        "shift": learned.shift_init,
        "bias": model.use_bias if learned.use_bias is None else learned.use_bias,
        "detach": learned.use_detached_input,
        "penalty": None,
    }
    if learned.sigmoid_scale is not None:
        rule["slope"] = learned.sigmoid_scale
    if model.use_dropout_l1_norm_penalty or model.use_dropout_entropy_penalty:
        given = model.dropout_l1_norm_coeff_config or model.dropout_entropy_coeff_config
        coefficient = given or PublishedCoefficient(max_coeff=COEFFICIENT)
        rule["penalty"] = (model.l1_norm_penalty_type or "entropy").lower()
        rule["weight"] = coefficient.weight(steps)
    return [rule]
