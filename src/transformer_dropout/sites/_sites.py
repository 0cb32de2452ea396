"""The list of a model's sites, which a notebook shows as a table."""

from ..notebook import html_table
from ._site import Site

COLUMNS = ("path", "kind", "access", "block", "width", "rate")


class Sites(list[Site]):
    """A list of sites; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        rows = [[getattr(site, column) for column in COLUMNS] for site in self]
        return html_table(f"{len(self)} sites", COLUMNS, rows)
