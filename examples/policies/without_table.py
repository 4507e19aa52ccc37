"""Takes the table section out of a module that has no use for it.

A policy oracle may have no table, and lld 14 (Debian 12) writes one of a single empty slot into
every module. A module that calls through a table has element segments as well: it is refused.
"""

import sys

TABLE, ELEMENT = 4, 9


def length_at(module, at):
    """Reads an unsigned LEB128; the number and where it ends."""
    value = shift = 0
    while True:
        byte = module[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def without_table(module):
    kept, at = module[:8], 8
    while at < len(module):
        section, (length, start) = module[at], length_at(module, at + 1)
        if section == ELEMENT:
            sys.exit("the module calls through its table: avoid pointers to functions")
        if section != TABLE:
            kept += module[at : start + length]
        at = start + length
    return kept


path = sys.argv[1]
with open(path, "rb") as file:
    module = file.read()
with open(path, "wb") as file:
    file.write(without_table(module))
