"""Sites: the named places in a model where a layer can act."""

from ._config_fields import rates_in_config
from ._find import find_sites, missing_kinds
from ._own_rate import own_rate
from ._site import KINDS, Site
from ._sites import Sites

__all__ = ["KINDS", "Site", "Sites", "find_sites", "missing_kinds", "own_rate", "rates_in_config"]
