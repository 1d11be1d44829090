"""The command line from a checkout: `python cli.py search …`; installed, the same command is `actune`."""

from actune.cli import main

main()
