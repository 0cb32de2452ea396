"""Whether the audit sees what an independent count sees.

``python tests/audit/independent_count.py [TYPE ...]`` runs model types of transformers that build small from
their config in training, with all dropout fields at 0.37, and counts every random kernel by the module that
was running, in a dispatch mode and hooks that share no code with the package. Without arguments these are all
types that no code of the package names, and those that agree are written to ``agreed_types.txt`` beside it.
"""

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import transformer_dropout as td
from transformer_dropout.audit import tiny_models

HERE = Path(__file__).parent
AGREED = HERE / "agreed_types.txt"
RATE = 0.37
LARGEST = 20_000_000
HOST = ("random", "numpy.random")


class CountDraws(TorchDispatchMode):
    """Counts every kernel that draws, by the path of the innermost module that runs."""

    def __init__(self, model):
        super().__init__()
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.running, self.counts = [], Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags and not idle(func, args, kwargs or {}):
            self.counts[self.running[-1] if self.running else ""] += 1
        return func(*args, **(kwargs or {}))

    def begin(self, module, args):
        if id(module) in self.paths:
            self.running.append(self.paths[id(module)])

    def end(self, module, args, output):
        if id(module) in self.paths:
            self.running.pop()


def idle(func, args, kwargs):
    """Return whether a kernel that could draw was asked for a rate of 0, as attention may be."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return "dropout_p" in names and not given.get("dropout_p")


def count(model, inputs):
    """Return how many random kernels each module ran in one training forward."""
    mode = CountDraws(model)
    handles = [register_module_forward_pre_hook(mode.begin), register_module_forward_hook(mode.end)]
    try:
        with mode:
            model.train()(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return mode.counts


def build(model_type):
    """Return a tiny model of a type with all its rates at 0.37, and inputs for it."""
    config = tiny_models.shrunk_config(transformers.CONFIG_MAPPING[model_type], {"model_type": model_type})
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        if part is not config:
            shrink(part)
        for name, value in list(vars(part).items()):
            if re.search("drop", name) and "layer" not in name and type(value) in (int, float):
                vars(part)[name] = RATE
    model_class = tiny_models.class_of(model_type, {"model_type": model_type})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters are not small")
    torch.manual_seed(0)
    model = model_class._from_config(config)
    return model, inputs_for(model)


def shrink(config):
    """Give a config inside a config the tiny sizes that it knows."""
    for name, size in tiny_models.TINY.items():
        if isinstance(vars(config).get(name), int):
            vars(config)[name] = size


def inputs_for(model):
    """Return inputs by what the model calls its main one."""
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        return tiny_models.tiny_inputs(model)
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or 32
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {name: torch.randn(2, getattr(config, "num_channels", 3), height, width)}
    if name == "input_values":
        return {name: torch.randn(2, 4000)}
    raise ValueError(f"no inputs are known for {name}")


def disagreement(model_type):
    """Return how much was drawn, and what the audit and the count say differently, by module."""
    model, inputs = build(model_type)
    # Some models choose their attention in the first forward.
    model.eval()(**inputs)
    torch.manual_seed(1)
    expected = count(model, inputs)
    torch.manual_seed(1)
    audit = td.audit(model, inputs)
    # Numbers of NumPy's and Python's generators are no kernels.
    ran = [event for event in audit.events if event.training and event.random and event.operation not in HOST]
    seen = Counter(event.path for event in ran)
    drawn = {path: (expected[path], seen[path]) for path in expected.keys() | seen.keys()}
    wrong = {path: pair for path, pair in drawn.items() if pair[0] != pair[1]}
    return sum(expected.values()), wrong


def unnamed_types():
    """Return the types that no code of the package names."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in Path(td.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"""["']([\w-]+)["']""", source))
    return [name for name in sorted(transformers.CONFIG_MAPPING) if name not in named]


def main(types):
    """Run types, write a line for each, and return those that draw and agree."""
    agreed = []
    for model_type in types:
        try:
            draws, wrong = disagreement(model_type)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:90]
            say(f"{model_type}: not run: {type(error).__name__}: {reason}")
            continue
        say(f"{model_type}: {draws} draws, {f'DIFFERS {wrong}' if wrong else 'agrees'}")
        # A model that draws nothing agrees too easily.
        agreed += [model_type] if draws and not wrong else []
    return agreed


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = main(sys.argv[1:] or unnamed_types())
    say(f"{len(found)} types that draw agree")
    if not sys.argv[1:]:
        AGREED.write_text("".join(f"{name}\n" for name in found), encoding="utf-8")
