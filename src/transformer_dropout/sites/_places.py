"""The words in which the tables of the model families are written."""

from dataclasses import dataclass

from ._site import Access, Kind


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place where a layer can act.

    Attributes:
        path: the module, relative to its block, to the base model, or to the model.
        access: ``module`` replaces it, ``output`` and ``input`` hook it, ``gate`` its method of that name,
            ``attention`` goes through the model's attention function, ``rate`` sets the number at ``rate``
            and nothing else.
        rate: the path of a float that already drops at this place, relative as ``path`` is; it is set to 0
            while a layer acts here. None where the model has no dropout of its own here.
    """

    path: str
    access: Access = "output"
    rate: str | None = None


Places = dict[Kind, tuple[Place, ...]]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One list of blocks.

    Attributes:
        path: the list, relative to the base model; ``*`` stands for any part.
        places: places inside a block; one that a block lacks is skipped (as cross-attention may be).
        causal: whether a token sees only what came before it.
        owner: the module that is called with the attention mask of two dimensions and the cache, relative
            to the base model.
        skips: the path of a float that already leaves out whole blocks, relative to the base model.
        end: places behind the last block, relative to the base model; their kind is ``classifier``.
    """

    path: str
    places: Places
    causal: bool = True
    owner: str = ""
    skips: str | None = None
    end: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The sites of one model family.

    Attributes:
        stacks: the lists of blocks.
        embedding: places relative to the base model.
        head: where the dropouts of the classifier or the output layer lie, relative to the model: all that
            exist, or the first of the hooks where the head has none of its own.
    """

    stacks: tuple[Stack, ...]
    embedding: tuple[Place, ...]
    head: tuple[Place, ...]


def output(path: str, rate: str | None = None) -> tuple[Place, ...]:
    """A hook on a module's output."""
    return (Place(path=path, rate=rate),)


def before(*paths: str, rate: str | None = None) -> tuple[Place, ...]:
    """Hooks on the inputs of modules."""
    return tuple(Place(path=path, access="input", rate=rate) for path in paths)


def child(*paths: str) -> tuple[Place, ...]:
    """Modules to replace: an ``nn.Dropout`` or ``nn.Identity`` that the model calls at this place."""
    return tuple(Place(path=path, access="module") for path in paths)


def weights(*paths: str, rate: str) -> tuple[Place, ...]:
    """Attention modules that go through the model's attention function."""
    return tuple(Place(path=path, access="attention", rate=f"{path}.{rate}") for path in paths)
