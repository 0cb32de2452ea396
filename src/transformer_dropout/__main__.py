"""``python -m transformer_dropout`` is the command ``dropout``."""

from .cli import main

main()
