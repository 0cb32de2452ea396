"""Pages from templates, every text in them escaped."""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(room: str, template: str, **content: Any) -> str:
    """Return a page from a template that lies in a room of the package."""
    return templates(room).get_template(template).render(**content)


@functools.cache
def templates(room: str) -> "Environment":
    """Return a room's templates, compiled once: a report is rendered after every run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("transformer_dropout", room),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
