"""What a Markdown document has: commands in fenced blocks, links, headings, flags in backticks."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SHELL_BLOCKS = {"sh", "bash", "console"}
FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*(\w*)")


@dataclass(frozen=True)
class Command:
    """One command as the document has it."""

    document: str
    line: int
    block: int
    text: str
    shown: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """By what a table names it."""
        return joined(self.text)


@dataclass
class Block:
    kind: str
    line: int
    lines: list[str] = field(default_factory=list)


def joined(text: str) -> str:
    """A command without comments, its continuation lines in one."""
    lines = [without_comment(line) for line in text.split("\n")]
    return re.sub(r" *\\\n\s*", " ", "\n".join(line for line in lines if line)).strip()


def without_comment(line: str) -> str:
    quote = None
    for at, char in enumerate(line):
        if quote:
            quote = None if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].rstrip()
    return line.rstrip()


def blocks(text: str) -> list[Block]:
    """The fenced blocks, without the indentation that a list gives them."""
    found: list[Block] = []
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None and match:
            indent, fence, kind = match.groups()
            found.append(Block(kind, number))
        elif fence is not None and line.strip() == fence:
            fence = None
        elif fence is not None:
            found[-1].lines.append(line.removeprefix(indent))
    return found


def is_complete(text: str) -> bool:
    """Whether bash would run it: a loop, a function or a here-document goes on to its end."""
    if text.rstrip(" ").endswith("\\"):
        return False
    parsed = subprocess.run(["bash", "-n"], input=text + "\n", capture_output=True, text=True)
    # Of a here-document without its end bash only warns.
    return parsed.returncode == 0 and not parsed.stderr


def take_command(lines: list[str], at: int) -> tuple[str, int]:
    """The command that begins at a line, and the line after it."""
    end = at + 1
    while end < len(lines) and not is_complete("\n".join(lines[at:end])):
        end += 1
    return "\n".join(lines[at:end]), end


def plain_commands(block: Block) -> list[tuple[int, str, tuple[str, ...]]]:
    found, at = [], 0
    while at < len(block.lines):
        text, end = take_command(block.lines, at)
        if without_comment(text.split("\n")[0]):
            found.append((block.line + 1 + at, text, ()))
        at = end
    return found


def console_commands(block: Block) -> list[tuple[int, str, tuple[str, ...]]]:
    """Commands behind `$ `, each with the lines below it: what it is shown to print."""
    lines = [line.removeprefix("$ ") for line in block.lines]
    starts = [at for at, line in enumerate(block.lines) if line.startswith("$ ")]
    found = []
    for at, after in zip(starts, starts[1:] + [len(lines)]):
        text, end = take_command(lines[:after], at)
        shown = "\n".join(lines[end:after]).strip("\n")
        found.append((block.line + 1 + at, text, tuple(shown.split("\n")) if shown else ()))
    return found


def commands(document: str, text: str) -> list[Command]:
    found = []
    for number, block in enumerate(blocks(text)):
        if block.kind in SHELL_BLOCKS:
            take = console_commands if block.kind == "console" else plain_commands
            found += [Command(document, line, number, what, shown) for line, what, shown in take(block)]
    return found


def prose(text: str) -> list[tuple[int, str]]:
    """Numbered lines outside of fenced blocks."""
    kept, fence = [], None
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None and match:
            fence = match.group(2)
        elif fence is not None:
            fence = None if line.strip() == fence else fence
        else:
            kept.append((number, line))
    return kept


def without_code(line: str) -> str:
    return re.sub(r"(`+).*?\1", lambda code: " " * len(code.group()), line)


def links(text: str) -> list[tuple[int, str]]:
    """Targets of links and pictures, with their lines."""
    pattern = re.compile(r"\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)|(?:href|src)=\"([^\"]+)\"")
    return [
        (number, match.group(1) or match.group(2) or "")
        for number, line in prose(text)
        # A link's text may be code, so only the brackets around it are looked at.
        for match in pattern.finditer(re.sub(r"`[^`]*`", "code", line))
    ]


def slug(heading: str) -> str:
    """GitHub's name for a heading: lower case, blanks to hyphens, no other punctuation."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Every name that a link may have behind `#`; a heading that stands twice gets a number."""
    seen: dict[str, int] = {}
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for _, line in prose(text):
        heading = re.match(r"^#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            name = slug(heading.group(1))
            times = seen.get(name, 0)
            seen[name] = times + 1
            found.add(f"{name}-{times}" if times else name)
    return found


def flags(text: str) -> list[tuple[int, str, str]]:
    """Every `--flag` within backticks: its line, itself, and the code that it stands in."""
    found = []
    lines = prose(text)
    # A span of code may go on in the next line of its paragraph.
    whole = "\n".join(line for _, line in lines)
    for span in re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", whole, re.S):
        code = span.group(2)
        if "\n\n" in code:
            continue
        for flag in re.finditer(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
            line = whole.count("\n", 0, span.start(2) + flag.start())
            found.append((lines[line][0], flag.group(), " ".join(code.split())))
    return found


def broken_links(root: Path, document: str, text: str) -> list[str]:
    """What links point to nothing, in a sentence each."""
    problems = []
    here = root / document
    for line, target in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here.parent / path).resolve() if path else here
        if not file.exists():
            problems.append(f"{document}:{line}: {target}: there is no such file")
        elif anchor and (file.is_dir() or anchor not in anchors(file.read_text())):
            problems.append(f"{document}:{line}: {target}: there is no such heading")
    return problems
