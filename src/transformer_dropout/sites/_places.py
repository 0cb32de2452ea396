"""The words in which places that code shows are written."""

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


def output(path: str, rate: str | None = None) -> tuple[Place, ...]:
    """A hook on a module's output."""
    return (Place(path=path, rate=rate),)


def before(*paths: str, rate: str | None = None) -> tuple[Place, ...]:
    """Hooks on the inputs of modules."""
    return tuple(Place(path=path, access="input", rate=rate) for path in paths)


def child(*paths: str) -> tuple[Place, ...]:
    """Modules to replace: an ``nn.Dropout`` or ``nn.Identity`` that the model calls at this place."""
    return tuple(Place(path=path, access="module") for path in paths)
