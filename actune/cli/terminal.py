"""What is shown on a terminal: names and messages may come from a stranger's database, so they are only ever text."""

from __future__ import annotations

import re
import sys

import click

# Control characters but for the newline and the tab, with which a text could move the cursor, set the window's title or
# type into the terminal (C0, DEL, C1: ECMA-48); those that turn the direction of what follows (Unicode's bidirectional
# algorithm, UAX 9); and halves of surrogate pairs, which can't be encoded.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with each character that is more than text as Python would write it."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def say(text: str) -> None:
    """A line on stderr."""
    click.echo(printable(text), err=True)


def put(text: str) -> None:
    """A document on stdout: to the letter in a pipe or a file, as text on a terminal."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
