#!/usr/bin/env python3
"""Print the command of a document that begins with some words, its continuation lines in one.

usage: command.py DOCUMENT WORDS [FROM=TO]…

FROM is what stands for something in the document, as NODE, and must be in the command; it is replaced once.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/docs"))
sys.dont_write_bytecode = True

import markdown  # noqa: E402


def main(document: str, words: str, *replacements: str) -> None:
    commands = markdown.commands(document, (ROOT / document).read_text())
    found = sorted({command.key for command in commands if command.key.startswith(words)})
    if len(found) != 1:
        sys.exit(f"{document} has {len(found)} commands that begin with: {words}")
    text = found[0]
    for replacement in replacements:
        old, _, new = replacement.partition("=")
        if old not in text:
            sys.exit(f"{document}: no {old} in: {text}")
        text = text.replace(old, new, 1)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
