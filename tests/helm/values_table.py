"""Writes the table of values in the chart's README from values.yaml.

    values_table.py           write it
    values_table.py --check   only say whether it is up to date

The comment that begins with "# --" above a value describes it; every value must have one, or lie in one
that has. Needs PyYAML.
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/evidenceos"
BEGIN, END = "<!-- values: made by tests/helm/values_table.py -->", "<!-- end of values -->"


def rows():
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    path, description, described = [], None, set()
    for line in text.splitlines():
        if comment := re.match(r"\s*# -- (.*)", line):
            description = comment[1]
        elif key := re.match(r"( *)([A-Za-z]\w*):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if description:
                value = values
                for part in path:
                    value = value[part]
                described.add(tuple(path))
                yield ".".join(path), value, description
            description = None
    for leaf in leaves(values):
        if not any(leaf[:length] in described for length in range(1, len(leaf) + 1)):
            sys.exit(f"values.yaml: {'.'.join(leaf)} has no description")


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    else:
        yield path


def table():
    lines = ["| value | default | |", "|---|---|---|"]
    for name, value, description in rows():
        shown = json.dumps(value).replace("|", r"\|")
        text = description.replace("|", r"\|")
        lines.append(f"| `{name}` | `{shown}` | {text} |")
    return "\n".join(lines)


def main():
    readme = CHART / "README.md"
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{readme}: there is no place for the table, between {BEGIN!r} and {END!r}")
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if sys.argv[1:] == ["--check"]:
        if text != wanted:
            sys.exit(f"{readme}: the table of values is not that of values.yaml; run tests/helm/values_table.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        readme.write_text(wanted)


main()
