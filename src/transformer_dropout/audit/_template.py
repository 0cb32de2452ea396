"""Pages from templates, every text in them escaped."""

from typing import Any


def rendered(room: str, template: str, **content: Any) -> str:
    """Return a page from a template that lies in a room of the package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("transformer_dropout", room),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)
