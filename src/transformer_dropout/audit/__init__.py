"""See what really runs: every random or mask operation of a model, and what to put right."""

from ._audit import assert_clean, audit
from ._events import CODES, Audit, ConfigField, Event, Finding

__all__ = ["CODES", "Audit", "ConfigField", "Event", "Finding", "assert_clean", "audit"]
