"""Sites: the named places in a model where a layer can act."""

from ._find import find_sites, missing_kinds
from ._site import KINDS, Site

__all__ = ["KINDS", "Site", "find_sites", "missing_kinds"]
