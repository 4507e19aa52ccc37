"""Takes the table section out of a module that has no use for it.

Daemons before 2.2 admit no policy module with a table, and lld 14 (Debian 12) writes one of a single
empty slot into every module. A module that calls through its table has element segments as well: it is
refused here, and nothing is written.
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
    if module[:8] != b"\0asm\1\0\0\0":
        sys.exit(f"{path} is no Wasm module")
    kept, at = module[:8], 8
    while at < len(module):
        section, (length, start) = module[at], length_at(module, at + 1)
        if section == ELEMENT:
            sys.exit(f"{path} calls through its table: avoid pointers to functions")
        end = start + length
        if end > len(module):
            raise IndexError
        if section != TABLE:
            kept += module[at:end]
        at = end
    return kept


path = sys.argv[1]
with open(path, "rb") as file:
    module = file.read()
# Opening the file to write empties it, so that whatever speaks against the module must have been said before.
try:
    module = without_table(module)
except IndexError:
    sys.exit(f"{path} ends inside a section")
with open(path, "wb") as file:
    file.write(module)
