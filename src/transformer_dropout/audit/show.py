"""`show`: one page of what a model's masks do to one text, block by block and through training."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..functional import entropy_penalty
from ..sites.observation.restore import refuse_what_cannot_be_watched
from ..surgery._refusals import handle_on
from ._masks import Masks, PlaceMasks, Shares, Weights, look
from ._template import rendered

# What a page pictures at most; more is left out, or several channels share a column, and the page says so.
MOST_TOKENS, MOST_KEYS, MOST_COLUMNS = 256, 96, 192
# Shares are bytes from 0 to LEVELS; UNKNOWN is for entries whose zero hides what was done.
LEVELS, UNKNOWN = 250, 255
VIEWS = ("expected", "evaluated", "drawn")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What was seen of a model at one moment of its training.

    Attributes:
        name: of the moment, such as "step 200".
        masks: what its masks kept.
    """

    name: str
    masks: Masks


def show(
    model: nn.Module,
    inputs: Any,
    *,
    tokens: Sequence[str] | None = None,
    checkpoints: Mapping[float, Mapping[str, Tensor]] | None = None,
    title: str | None = None,
) -> str:
    """Return a page of what a model's masks do to one text: a self-contained HTML text.

    It shades each token by the fraction kept at each place: as expected, in evaluation, and in one draw.
    Below are channels by tokens, rates and entropies by place, and which attention weights one draw
    dropped.

    Usage: ``Path("masks.html").write_text(td.show(model, inputs, tokens=words), encoding="utf-8")``.

    Args:
        model: any module that is not compiled; it is put back as it was.
        inputs: of one text, as in ``td.audit``.
        tokens: the text, token by token; None for numbers.
        checkpoints: by the fraction of training done, states of the model at earlier moments; the page then
            has a slider, which ends at the model as it is.
        title: of the page; None for the model's class.

    Raises:
        InputError: for a compiled model, inputs that are not one text, or a checkpoint that does not fit.
    """
    named = {
        f"{progress:.0%} of training": (progress, state) for progress, state in (checkpoints or {}).items()
    }
    moments = [
        *moments_of(model, inputs, named),
        Moment(name="the model as it is", masks=look(model, inputs)),
    ]
    return masks_page(moments, tokens or (), title=title or type(model).__name__)


def moments_of(
    model: nn.Module, inputs: Any, checkpoints: Mapping[str, tuple[float, Mapping[str, Tensor]]]
) -> Iterator[Moment]:
    """Yield what a model's masks kept with the weights of earlier moments; in the end it is as it was.

    Args:
        model, inputs: as in `show`.
        checkpoints: by the moment's name, the fraction of training done, and the state.

    Raises:
        InputError: for a state that does not fit the model, or a fraction outside [0, 1].
    """
    refuse_what_cannot_be_watched(model, "td.show")
    for name, (progress, state) in checkpoints.items():
        with as_it_was(model, name, progress, state):
            yield Moment(name=name, masks=look(model, inputs))


@contextmanager
def as_it_was(model: nn.Module, name: str, progress: float, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model the weights and the rates of an earlier moment, and its own again at the end."""
    handle = handle_on(model)
    now = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    before = 0.0 if handle is None else handle.progress
    try:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).partition("\n")[2].strip() or str(error)
            raise InputError(f"The checkpoint {name!r} does not fit the model: {reason[:200]}") from None
        if handle is not None:
            handle.set_progress(progress)
        yield
    finally:
        model.load_state_dict(now)
        if handle is not None:
            handle.set_progress(before)


def masks_page(
    moments: Sequence[Moment], tokens: Sequence[str], *, title: str, notes: Iterable[str] = ()
) -> str:
    """Return the page of `show` for moments that were seen.

    Args:
        moments: from the earliest on.
        tokens: the text, token by token; where a place has another number of rows, they are numbered.
        title: of the page.
        notes: sentences to add.
    """
    places = {
        (place.path, place.turn): place for moment in moments for place in moment.masks.places
    }  # a rate of 0 leaves no trace, so not every moment has every place
    longest = max([len(tokens), *(rows_in(place) for place in places.values())], default=0)
    told = [*notes]
    if longest > MOST_TOKENS:
        told.append(f"Of {longest} tokens the first {MOST_TOKENS} are pictured.")
    if any(columns_in(place) > MOST_COLUMNS for place in places.values()):
        told.append(f"Where there are more than {MOST_COLUMNS} channels, neighbours share a column.")
    if any(place.attention and place.attention.weights.shape[-1] > MOST_KEYS for place in places.values()):
        told.append(f"Of the attention weights those of the first {MOST_KEYS} tokens are pictured.")
    told += [
        f"Random numbers were drawn here without a mask that could be seen: {where}."
        for where in dict.fromkeys(where for moment in moments for where in moment.masks.unpictured)
    ]
    content = {
        "tokens": list(tokens)[:MOST_TOKENS],
        "places": [described(place) for place in places.values()],
        "moments": [
            {
                "name": moment.name,
                "places": [seen_at(moment.masks, key) for key in places],
            }
            for moment in moments
        ],
        "levels": LEVELS,
        "unknown": UNKNOWN,
    }
    return rendered("audit", "masks.html.jinja", title=title, content=content, notes=told, places=len(places))


def described(place: PlaceMasks) -> dict[str, Any]:
    """Return what a page says of a place, whatever the moment."""
    inside = place.path[len(place.block) :].lstrip(".") if place.block else place.path
    turn = f" (call {place.turn})" if place.turn > 1 else ""
    return {
        "block": place.block or "outside the blocks",
        "inside": f"{inside or 'the module itself'}{turn}",
        "kind": place.kind.replace("_", " "),
        "operation": place.operation.replace("scaled_dot_product_attention", "attention"),
    }


def seen_at(masks: Masks, key: tuple[str, int]) -> dict[str, Any]:
    """Return what was seen of a place at one moment; all is kept where nothing dropped."""
    place = next((place for place in masks.places if (place.path, place.turn) == key), None)
    if place is None:
        return {"rate": 0.0, **{view: shares_data(1.0) for view in VIEWS}, "entropy": 0.0, "attention": None}
    return {
        "rate": place.rate,
        **{view: shares_data(getattr(place, view)) for view in VIEWS},
        "entropy": entropy_of(place.expected),
        "attention": None if place.attention is None else weights_data(place.attention),
    }


def shares_data(values: Shares | None) -> dict[str, Any] | None:
    """Return shares for a page: their mean, the mean of each token, and entries as bytes."""
    if values is None:
        return None
    if isinstance(values, float):
        return {"mean": values, "tokens": None, "cells": None, "columns": 1}
    by_token = values[:MOST_TOKENS].nanmean(1).nan_to_num(1.0)
    cells = narrowed(values[:MOST_TOKENS])
    levels = torch.where(cells.isnan(), UNKNOWN, (cells * LEVELS).round()).to(torch.uint8)
    return {
        "mean": round(values.nanmean().nan_to_num(1.0).item(), 4),
        "tokens": [round(share, 3) for share in by_token.tolist()],
        "cells": text_of(levels),
        "columns": cells.shape[1],
    }


def narrowed(values: Tensor) -> Tensor:
    """Return entries in at most so many columns as a page has, each the mean of neighbours."""
    width = values.shape[1]
    if width <= MOST_COLUMNS:
        return values
    share = -(-width // MOST_COLUMNS)
    filled = F.pad(values, (0, -width % share), value=torch.nan)
    return filled.unflatten(1, (-1, share)).nanmean(-1)


def weights_data(seen: Weights) -> dict[str, Any]:
    """Return attention weights for a page, and what was dropped of them, as bytes."""
    weights = seen.weights[:, :MOST_KEYS, :MOST_KEYS]
    dropped = seen.dropped[:, :MOST_KEYS, :MOST_KEYS]
    seen_by_query = seen.weights > 0
    share = (seen.dropped & seen_by_query).sum() / seen_by_query.sum().clamp_min(1)
    return {
        "heads": weights.shape[0],
        "queries": weights.shape[1],
        "keys": weights.shape[2],
        "weights": text_of((weights * LEVELS).round().to(torch.uint8)),
        "dropped": text_of(dropped.to(torch.uint8)),
        "share": round(share.item(), 4),
    }


def text_of(levels: Tensor) -> str:
    """Return bytes as base64."""
    return base64.b64encode(bytes(levels.flatten().tolist())).decode("ascii")


def entropy_of(expected: Shares | None) -> float | None:
    """Return the mean binary entropy of the probabilities of keeping, in nats."""
    if expected is None:
        return None
    return round(entropy_penalty(torch.as_tensor(expected)).item(), 4)


def rows_in(place: PlaceMasks) -> int:
    """Return how many tokens a place has; 0 where that was not seen."""
    return max(len(values) if isinstance(values, Tensor) else 0 for values in views_of(place))


def columns_in(place: PlaceMasks) -> int:
    """Return how many channels a place has; 0 where that was not seen."""
    return max(values.shape[1] if isinstance(values, Tensor) else 0 for values in views_of(place))


def views_of(place: PlaceMasks) -> list[Shares | None]:
    """Return what was kept at a place in each view."""
    return [getattr(place, view) for view in VIEWS]
