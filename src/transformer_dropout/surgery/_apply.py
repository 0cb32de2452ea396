"""The surgery at each kind of access, every cut with its way back."""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.compiled_hooks import NoticedHook
from ..layers import DropoutLayer
from ..sites import Site
from ..sites._own_rate import holder_of, put_rate_back, read_rate, set_rate
from ..sites._written_rates import is_written
from ..sites.observation.lineage import tensors_in
from ._attention import attend_with_layer, route_through_layer
from ._mlp import PlainMLP, detours, end_detour, hook_without_effect, plain_mlp
from ._own_rates import MARK, Read, forward_with_rates
from ._sequence import CacheSlot, Sequence, follow_sequence


def child_name(site: Site) -> str:
    """Return the name that a site's layer has as a child of the site's module."""
    return f"{site.kind}_dropout"


def reader_of(site: Site) -> str:
    """Return the path of the module whose code reads the rate of a site.

    A run has shown it; without one it is the holder, and of an ``nn.Dropout`` the parent.
    """
    assert site.rate is not None
    if site.found == "run" and site.access == "rate":
        return site.path
    holder, _, name = site.rate.rpartition(".")
    return holder.rpartition(".")[0] if name == "p" else holder


def buffer_name(site: Site) -> str:
    """Return the name of the reader's buffer for the rate of a site."""
    assert site.rate is not None
    reader = reader_of(site)
    return f"{site.rate.removeprefix(f'{reader}.' if reader else '').replace('.', '_')}_rate"


class Surgery:
    """Changes to one model, undone in the opposite order.

    Args:
        model: the model to change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._ways_back: list[Callable[[], None]] = []
        self._sequences: dict[str, Sequence] = {}
        self._remembering: dict[str, int] = {}
        self._rates_before: dict[str, float | None] = {}
        self._reads: dict[str, list[Read]] = {}
        self._hooked: set[nn.Module] = set()

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._ways_back:
            self._ways_back.pop()()

    def place(self, site: Site, layer: DropoutLayer) -> None:
        """Put a layer at its site, in the way the site is reached.

        Raises:
            InputError: when the layer cannot act there.
        """
        self.silence(site)
        if layer.computes_mlp and (mlp := plain_mlp(self.model, site)) is not None:
            self._compute_mlp(site, layer, mlp)
            return
        match site.access:
            case "module":
                self._replace(site.path, layer)
            case "output":
                self._hook_output(site, layer)
            case "input":
                self._hook_input(site, layer)
            case "block":
                self._hook_block(site, layer)
            case "gate":
                self._follow_gate(site, layer)
            case "attention":
                self._hook_attention(site, layer)
            case "rate":
                # The model's own code drops; `Regularization.set_progress` writes how much.
                self._follow_rate(site)

    def add_child(self, path: str, name: str, child: nn.Module) -> nn.Module:
        """Make a module a child of the module at a path, on its device, in its dtype and mode."""
        parent = self.model.get_submodule(path)
        self._take_along(child, parent)
        parent.add_module(name, child.train(parent.training))
        self._ways_back.append(partial(delattr, parent, name))
        self._keep_tensors_whole(path)
        return parent

    def _take_along(self, child: nn.Module, parent: nn.Module) -> None:
        """Move a new module to where its parent computes, in the dtype that it computes in."""
        # An activation has no parameters of its own, and those of a quantised layer may be packed bytes.
        around = [p for module in (parent, self.model) for p in module.parameters()]
        reference = next((p for p in around if p.is_floating_point()), None)
        if reference is not None:
            child.to(reference.device, reference.dtype)

    def _keep_tensors_whole(self, path: str) -> None:
        """Let no ``nn.TransformerEncoder`` around a module pack sequences, which hooked layers refuse."""
        for end in [index for index, letter in enumerate(path) if letter == "."] + ([0] if path else []):
            outer = self.model.get_submodule(path[:end])
            if isinstance(outer, nn.TransformerEncoder) and outer.use_nested_tensor:
                outer.use_nested_tensor = False
                self._ways_back.append(partial(setattr, outer, "use_nested_tensor", True))

    def silence(self, site: Site) -> None:
        """Set the model's own rates at a site to 0 while a layer acts there."""
        first = () if site.rate is None or site.access == "rate" else (site.rate,)
        for rate in (*first, *site.silences):
            self._set_rate(rate, 0.0)

    def write_rate(self, site: Site, value: float) -> None:
        """Set a rate of the model's own; it is put back in the end."""
        assert site.rate is not None
        self._set_rate(site.rate, value)
        owner, name = holder_of(self.model, site.rate)
        for read in self._reads.get(reader_of(site), ()):
            if read.owner is owner and read.name == name:
                read.set(value)

    def runs_at(self, site: Site, layer: DropoutLayer) -> nn.Module | Read:
        """Return the module that runs where a layer was placed, or the rate that is read there."""
        if site.access == "rate" and site.rate is not None:
            owner, name = holder_of(self.model, site.rate)
            reads = self._reads.get(reader_of(site), ())
            for read in reads:
                if read.owner is owner and read.name == name:
                    return read
        return layer if site.access == "module" else self.model.get_submodule(site.path)

    def _set_rate(self, rate: str, value: float) -> None:
        if rate not in self._rates_before:
            before = self._rates_before[rate] = read_rate(self.model, rate)
            self._ways_back.append(partial(put_rate_back, self.model, rate, before))
        set_rate(self.model, rate, value)

    def _follow_rate(self, site: Site) -> None:
        """Let compiled code drop at the rate of a site without reading the number."""
        assert site.rate is not None
        path, buffer = reader_of(site), buffer_name(site)
        reader, (owner, name) = self.model.get_submodule(path), holder_of(self.model, site.rate)
        if is_written(name):
            self._set_rate(site.rate, 0.0)
            return
        reference = next(reader.parameters(), next(self.model.parameters(), None))
        device = None if reference is None else reference.device
        reader.register_buffer(buffer, torch.zeros((), device=device), persistent=False)
        self._ways_back.append(partial(delattr, reader, buffer))
        reads = self._reads.setdefault(path, [])
        reads.append(Read(reader=reader, owner=owner, name=name, buffer=buffer, mark=MARK / 2 ** len(reads)))
        if len(reads) == 1:
            before = vars(reader).get("forward")
            reader.forward = partial(forward_with_rates, reader.forward, reads)
            self._ways_back.append(
                partial(delattr, reader, "forward")
                if before is None
                else partial(setattr, reader, "forward", before)
            )

    def moved_rates(self) -> dict[str, float]:
        """Return the rates of the model's own that are not what they were, with what that was."""
        before = {rate: float(value or 0.0) for rate, value in self._rates_before.items()}
        return {rate: was for rate, was in before.items() if (read_rate(self.model, rate) or 0.0) != was}

    def rate_before(self, path: str) -> float:
        """Return what a rate of the model's own was before it was silenced; 0 when it was not."""
        return float(self._rates_before.get(path) or 0.0)

    def _replace(self, path: str, layer: DropoutLayer) -> None:
        original = self.model.get_submodule(path)
        self._take_along(layer, original)
        layer.train(original.training)
        # A module that several parts share is replaced in all of them.
        for shared, module in list(self.model.named_modules(remove_duplicate=False)):
            if module is original:
                parent, _, name = shared.rpartition(".")
                owner = self.model.get_submodule(parent)
                self._ways_back.append(partial(put_back, owner, name, original))
                setattr(owner, name, layer)

    def _hook_output(self, site: Site, layer: DropoutLayer) -> None:
        parent = self.add_child(site.path, child_name(site), layer)
        self._hook_after(parent, partial(on_output, child_name(site)))

    def _hook_input(self, site: Site, layer: DropoutLayer) -> None:
        parent = self.add_child(site.path, child_name(site), layer)
        hook = parent.register_forward_pre_hook(partial(on_input, child_name(site)), with_kwargs=True)
        self._keep(NoticedHook(parent, hook))

    def _compute_mlp(self, site: Site, layer: DropoutLayer, mlp: PlainMLP) -> None:
        """Let a layer compute the MLP around its site, so that it can leave out what it drops."""
        layer.in_plain_mlp = True
        parent = self.add_child(site.path, child_name(site), layer)
        self._keep(NoticedHook(parent, parent.register_forward_hook(hook_without_effect)))
        for owner, name, value in detours(mlp, parent, child_name(site)):
            own = vars(owner).get(name)
            setattr(owner, name, value)
            self._ways_back.append(partial(end_detour, owner, name, own))

    def _hook_block(self, site: Site, layer: DropoutLayer) -> None:
        parent = self.add_child(site.path, child_name(site), layer)
        self._hook_after(parent, partial(on_branch, child_name(site), site.streams), with_kwargs=True)

    def _follow_gate(self, site: Site, layer: DropoutLayer) -> None:
        parent: Any = self.add_child(site.path, child_name(site), layer)
        parent._apply_gate = partial(gate_with_layer, child_name(site), parent, parent._apply_gate)
        # The method of the class shows through again.
        self._ways_back.append(partial(delattr, parent, "_apply_gate"))

    def _hook_attention(self, site: Site, layer: DropoutLayer) -> None:
        parent = self.add_child(site.path, child_name(site), layer)
        if hasattr(parent, "attend"):
            object.__setattr__(parent, "attend", attend_with_layer)
            # The function of the class shows through again.
            self._ways_back.append(partial(delattr, parent, "attend"))
        else:
            self._ways_back.append(route_through_layer(parent))

    def show_output(self, path: str, name: str, child: nn.Module) -> None:
        """Let a new child see what the module at a path returns, and leave that as it is."""
        parent = self.add_child(path, name, child)
        self._hook_after(parent, partial(beside_output, name))

    def _hook_after(self, module: nn.Module, hook: Callable[..., Any], **options: bool) -> None:
        """Hook what a module returns; others' hooks, as of hidden states, see what the layer gives."""
        handle = module.register_forward_hook(hook, prepend=module not in self._hooked, **options)
        self._hooked.add(module)
        self._keep(NoticedHook(module, handle))

    def _keep(self, hook: Any) -> None:
        self._ways_back.append(hook.remove)

    def inform(self, site: Site, layer: nn.Module) -> None:
        """Tell a layer that looks at other tokens about padding and about the cache."""
        if site.owner is None:
            return
        sequence = self._sequences.get(site.owner)
        if sequence is None:
            sequence = self._sequences[site.owner] = Sequence()
            owner = self.model.get_submodule(site.owner)
            for hook in follow_sequence(self.model, owner, sequence):
                self._keep(hook)
        index = self._remembering.get(site.owner, 0)
        self._remembering[site.owner] = index + 1
        hook = layer.register_forward_pre_hook(
            partial(add_sequence, sequence, index, site.n_blocks), with_kwargs=True
        )
        self._keep(hook)


def put_back(owner: nn.Module, name: str, original: nn.Module) -> None:
    """Put a module back in the place of a layer, in the mode that the model has now."""
    setattr(owner, name, original.train(getattr(owner, name).training))


# The hooks look the child up by name, so that a deep copy of the model runs its own layers.
def on_output(name: str, module: nn.Module, arguments: tuple, output: Any) -> Any:
    """Forward hook: the child acts on the output, or on its first part."""
    first = output[0] if isinstance(output, tuple | list) else output
    # A layer that looks at other tokens may have given flattened tokens their sequence back.
    return with_part(output, 0, getattr(module, name)(first).reshape(first.shape))


def on_input(name: str, module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: the child acts on the first argument, given by its place or by its name."""
    if arguments:
        acted = getattr(module, name)(arguments[0]).reshape(arguments[0].shape)
        return (acted, *arguments[1:]), keywords
    first = next(iter(keywords))
    acted = getattr(module, name)(keywords[first]).reshape(keywords[first].shape)
    return arguments, {**keywords, first: acted}


def gate_with_layer(name: str, module: nn.Module, gate: Callable[[Tensor], Tensor], *given: Tensor) -> Tensor:
    """The method ``_apply_gate`` of experts: the child acts on the hidden units that it computes."""
    return getattr(module, name)(gate(*given))


def on_branch(
    name: str, streams: tuple[int, ...], module: nn.Module, arguments: tuple, keywords: dict, output: Any
) -> Any:
    """Forward hook: the child acts on what a residual block adds to its input, or to several of them."""
    for place in streams:
        entered = entered_at(place, module, arguments, keywords)
        left = output[place] if isinstance(output, tuple | list) else output
        added = left - entered
        acted = getattr(module, name)(added)
        # Where nothing was done not `entered + added`, which would round.
        if acted is not added:
            output = with_part(output, place, entered + acted)
    return output


def entered_at(place: int, module: nn.Module, arguments: tuple, keywords: dict) -> Tensor:
    """Return one of the tensors that a block was given; the first by its name where it has one."""
    if place == 0 and not arguments:
        return keywords[next(iter(inspect.signature(module.forward).parameters))]
    if place == 0 and isinstance(arguments[0], Tensor):
        return arguments[0]
    return next(islice(tensors_in((*arguments, *keywords.values())), place, None))


def with_part(output: Any, place: int, value: Tensor) -> Any:
    """Return what a module returned, a tensor or several, with another one at a place."""
    if not isinstance(output, tuple | list):
        return value
    parts = [*output[:place], value, *output[place + 1 :]]
    return parts if isinstance(output, list) else tuple(parts)


def beside_output(name: str, module: nn.Module, arguments: tuple, output: Tensor) -> None:
    """Forward hook: the child sees the output."""
    getattr(module, name)(output)


def add_sequence(
    sequence: Sequence, index: int, n_layers: int, layer: nn.Module, arguments: tuple, keywords: dict
) -> tuple[tuple, dict]:
    """Forward pre-hook: hand padding mask and cache to a layer that looks at other tokens.

    Raises:
        InputError: when the layer would train through a cache, or the tokens come without their sequence.
    """
    slot = None
    if sequence.cache is not None:
        if torch.is_grad_enabled() and layer.training:
            raise InputError(
                f"{type(layer).__name__} cannot train through a cache; call the model with use_cache=False."
            )
        slot = CacheSlot(sequence, index, n_layers)
    x = sequence.unflattened(arguments[0])
    return (x, *arguments[1:]), {**keywords, "padding_mask": sequence.padding_mask, "past": slot}
