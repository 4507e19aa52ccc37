"""Prints what a run's trace says, a line a record: `evidenceos claim trace CLAIM_ID -o run.trace`.

  trace.py run.trace              which run, each question with its answer, the vector to judge, the end
  trace.py run.trace --judged     the vector to judge itself, a line an item

The format, field by field: docs/formats.md. Vectors are packed eight items a byte, the first one in the lowest bit.
"""

import sys
from pathlib import Path

MAGIC = b"evidenceos/trace/v3\0"
RUN, ASKED, REPLAYED, FREE, JUDGED, END = 0x20, 0x01, 0x02, 0x03, 0x10, 0x21


class Reader:
    def __init__(self, content):
        self.content, self.at = content, 0

    def take(self, length):
        self.at += length
        if self.at > len(self.content):
            sys.exit("the trace ends inside a record")
        return self.content[self.at - length : self.at]

    def number(self, length):
        return int.from_bytes(self.take(length), "big")

    def vector(self, items):
        packed = self.take((items + 7) // 8)
        return [packed[i // 8] >> i % 8 & 1 for i in range(items)]


def records(reader, items):
    """Each record as (kind, what it says)."""
    while reader.at < len(reader.content):
        kind = reader.number(1)
        if kind == RUN:
            said = {"claim": reader.take(32).hex()}
            reader.take(16 + 32 + 32)  # the owner's tag, the hashes of the module and of the seal
            said["number"] = reader.number(8)
            reader.take(1 + 4)  # levels, alpha
            said["symbols"] = reader.number(4)
            said["engine"] = reader.take(reader.number(2)).decode()
            reader.take(8)  # how many runs had ended when it was admitted
            said["reserved_microbits"] = reader.number(8)
            reader.take(32 * reader.number(1))  # the capsules of its parents
        elif kind == ASKED:
            reader.number(4)
            said = {"answer": reader.number(4), "vector": reader.vector(items)}
        elif kind == REPLAYED:
            said = {"question": reader.number(4)}
        elif kind == FREE:
            said = {"questions": reader.number(4)}
        elif kind == JUDGED:
            said = {"vector": reader.vector(items)}
        elif kind == END:
            said = {"code": reader.number(2), "deferred": reader.number(1), "fuel": reader.number(8)}
            said |= {"asked": reader.number(4), "output": reader.take(reader.number(4))}
        else:
            sys.exit(f"no record is of kind {kind:#x}")
        yield kind, said


def main(path, *options):
    reader = Reader(Path(path).read_bytes())
    if reader.take(len(MAGIC)) != MAGIC:
        sys.exit(f"{path} is no trace that this release writes")
    items = reader.number(8)
    names = {RUN: "run", ASKED: "asked", REPLAYED: "asked again", FREE: "asked free", JUDGED: "to judge", END: "end"}
    for kind, said in records(reader, items):
        if options == ("--judged",):
            if kind == JUDGED:
                print(*said["vector"], sep="\n")
            continue
        if "vector" in said:
            said["vector"] = f"{sum(said['vector'])} ones of {items}"
        print(f"{names[kind]}:", ", ".join(f"{name} {value}" for name, value in said.items()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
