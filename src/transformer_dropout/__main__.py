"""``python -m transformer_dropout`` is the command ``dropout``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is being loaded ends quietly too."""
    try:
        from .cli import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
