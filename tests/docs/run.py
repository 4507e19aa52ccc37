#!/usr/bin/env python3
"""Execute every command of every document, and compare what it prints with what the document shows.

The fenced blocks `sh`, `bash` and `console` are taken in order, those of one document in one scratch
directory and each block in a shell of its own. `evidenceos` and `evidenceos-daemon` are PROGRAM. A command
fails if its exit status is not zero (but for one that is shown to print `error:`), or if it prints other
lines than the document shows; `…` in these stands for anything. A server that a document starts runs in the
background until the document starts another one or ends.

What cannot run here (containers, clusters, root, builds) is in elsewhere.toml with the reason and the test
that executes it. A command that is neither executed nor listed fails the run, and so does an entry that no
document has any more. setups.toml says what a document takes as given.

Links must lead to files and headings that exist, and every `--flag` in backticks must be in a help text.

examples:
  tests/docs/run.py target/debug/evidenceos                  all documents
  tests/docs/run.py target/debug/evidenceos docs/keys.md     one

exit status: 0 if all is well, 1 if a document is wrong, 2 if the tables are.
"""

import argparse
import difflib
import re
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

import markdown  # noqa: E402
import stage  # noqa: E402
from markdown import Command  # noqa: E402
from stage import ROOT, Failed, Stage  # noqa: E402

HERE = Path(__file__).resolve().parent
DOCUMENTS = (
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "examples/*/README.md",
    "deploy/*/README.md",
    "deploy/helm/*/README.md",
)
TOTAL_SECONDS = 175
# Its help is another program's, which may not be there.
OTHER_PROGRAMS = {"bench"}
# What differs from run to run, and is no mistake of the document: how it is shown, and how it is printed.
VARIABLE = [
    # Ids and digests that depend on the key, the time or the secret split. A module's digest does not.
    r"(?<=created    )[0-9a-f]{64}",
    r"(?<=capsule:    )[0-9a-f]{64}",
    r"(?<=claim )[0-9a-f]{64}",
    # How a holdout is split is secret, and with it what an oracle answers and which model is better.
    r"(?<=answer )\d+",
    r"(?<=vector )\d+(?= ones)",
    r"(?<=emitted:    )0[b-f]",
    r"(?<=output b'\\x)0[b-f]",
    # Of the machine and the release of the compiler of guests.
    r"(?<=engine )[\w./-]+",
]


class Wrong(Exception):
    """A table does not fit the documents."""


@dataclass
class Tables:
    """elsewhere.toml and setups.toml."""

    elsewhere: dict[tuple[str, str], dict]
    foreign_flags: dict[str, set[str]]
    setups: dict[str, dict]


@dataclass
class Report:
    document: str
    run: int = 0
    elsewhere: int = 0
    compared: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def read_tables() -> Tables:
    table = tomllib.loads((HERE / "elsewhere.toml").read_text())
    setups = tomllib.loads((HERE / "setups.toml").read_text())
    elsewhere = {}
    for entry in table["elsewhere"]:
        if not entry.get("why"):
            raise Wrong(f"elsewhere.toml: an entry of {entry['document']} has no reason")
        test = entry.get("test", "").split(":")[0]
        if test and not (ROOT / test).is_file():
            raise Wrong(f"elsewhere.toml: {entry['document']}: there is no test {test}")
        for command in entry["commands"]:
            elsewhere[entry["document"], command] = entry
    flags = {program: set(names) for program, names in table["flags"].items()}
    return Tables(elsewhere, flags, setups)


def all_documents() -> list[str]:
    found = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found]


# --- what is shown -----------------------------------------------------------------------------------


def pattern_of(shown: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """A pattern for shown lines, and the names under which it keeps what differs."""
    names: dict[str, str] = {}
    token = re.compile("|".join(["…"] + VARIABLE))

    def of_line(line: str) -> str:
        parts, at = [], 0
        for match in token.finditer(line):
            parts.append(re.escape(line[at : match.start()]))
            parts.append(of_token(match))
            at = match.end()
        return "".join(parts) + re.escape(line[at:].rstrip()) + r"[ \t]*"

    def of_token(match: re.Match) -> str:
        value = match.group()
        if value == "…":
            return r"[^\n]*?"
        if not re.fullmatch("[0-9a-f]{64}", value):
            return r"[\w./-]+"
        # The same id must be the same wherever it is shown.
        if value in names.values():
            return next(f"(?P={name})" for name, known in names.items() if known == value)
        name = f"id{len(names)}"
        names[name] = value
        return f"(?P<{name}>[0-9a-f]{{64}})"

    pattern = ""
    for line in shown:
        # A line of nothing else stands for any lines, or none.
        pattern += r"(?:[^\n]*\n)*?" if line.strip() == "…" else of_line(line) + r"\n"
    return pattern, names


def compare(shown: tuple[str, ...], printed: str) -> dict[str, str]:
    """What shown ids stand for.

    Raises Failed with the difference.
    """
    pattern, names = pattern_of(shown)
    text = printed.strip("\n") + "\n"
    match = re.fullmatch(pattern, text)
    if match:
        return {value: match.group(name) for name, value in names.items()}
    masked = [[re.sub("|".join(VARIABLE), "…", line) for line in lines] for lines in (shown, text.splitlines())]
    lines = difflib.unified_diff(*masked, "shown", "printed", lineterm="", n=1)
    raise Failed("it prints something else:\n" + "\n".join(lines))


# --- commands ----------------------------------------------------------------------------------------


def is_shown_to_fail(command: Command) -> bool:
    return any(line.startswith("error:") for line in command.shown)


def execute(place: Stage, command: Command, setup: dict, report: Report) -> None:
    """Runs one command, and compares what it prints.

    Raises Failed.
    """
    endless = setup.get("endless", {})
    if command.key in endless:
        status, printed = place.run_endless(command.text, endless[command.key])
    else:
        status, printed = place.run(command.text)
    report.said.append(f"{command.line}: $ {command.key}\n{printed}")
    if (status != 0) != is_shown_to_fail(command):
        server = place.server_log() if "connect" in printed.lower() else ""
        raise Failed(f"exit status {status}:\n{tail(printed)}{server}")
    if command.shown:
        place.ids |= compare(command.shown, place.unstaged(printed))


def tail(printed: str, lines: int = 25) -> str:
    return "".join(f"{line}\n" for line in printed.splitlines()[-lines:])


def prepare(place: Stage, document: str, commands: list[str]) -> None:
    """Runs what the setup of a document has, which is no part of it."""
    for text in commands:
        try:
            status, printed = place.run(text)
            if status != 0:
                raise Failed(f"exit status {status}:\n{tail(printed)}")
        except Failed as error:
            raise Failed(f"{document}: setups.toml: `{text.strip()}`: {error}") from error


def play(program: Path, document: str, tables: Tables, deadline: float) -> Report:
    """Runs a document from its first command to its last."""
    report = Report(document)
    began = time.monotonic()
    text = (ROOT / document).read_text()
    commands = markdown.commands(document, text)
    listed = [command for command in commands if (document, command.key) in tables.elsewhere]
    report.elsewhere = len(listed)
    mine = [command for command in commands if command not in listed]
    report.problems += markdown.broken_links(ROOT, document, text)
    if mine:
        run_all(program, mine, tables.setups.get(document, {}), report, deadline)
    report.seconds = time.monotonic() - began
    return report


def run_all(program: Path, commands: list[Command], setup: dict, report: Report, deadline: float) -> None:
    before = {step["command"]: step["run"] for step in setup.get("before", [])}
    with Stage(program, deadline, setup.get("directory", ".")) as place:
        place.environment |= setup.get("environment", {})
        place.new_terminal()
        block = None
        try:
            prepare(place, report.document, setup.get("start", []))
            for command in commands:
                if command.block != block:
                    block = command.block
                    place.new_terminal()
                # Of two equal commands the first.
                prepare(place, report.document, before.pop(command.key, []))
                run_one(place, command, setup, report)
            prepare(place, report.document, setup.get("end", []))
        except Failed as error:
            report.problems.append(str(error))


def run_one(place: Stage, command: Command, setup: dict, report: Report) -> None:
    report.run += 1
    report.compared += bool(command.shown)
    try:
        execute(place, command, setup, report)
    except Failed as error:
        report.problems.append(f"{command.document}:{command.line}: `{command.key}`: {error}")


# --- flags -------------------------------------------------------------------------------------------


def help_of(program: Path, words: tuple[str, ...]) -> str:
    done = subprocess.run([program, *words, "--help"], capture_output=True, text=True, timeout=20)
    return done.stdout


def subcommands(text: str) -> list[str]:
    listed = re.search(r"^Commands:\n((?:.*\n)*?)(?:^\S|\Z)", text, re.M)
    names = re.findall(r"^  ([a-z][\w-]*)", listed.group(1), re.M) if listed else []
    return [name for name in names if name not in {"help"} | OTHER_PROGRAMS]


def help_texts(program: Path) -> dict[tuple[str, ...], set[str]]:
    """The flags in the help text of each command of the program."""
    found: dict[tuple[str, ...], set[str]] = {}
    layer: list[tuple[str, ...]] = [()]
    with ThreadPoolExecutor(4) as pool:
        while layer:
            texts = list(pool.map(lambda words: help_of(program, words), layer))
            for words, text in zip(layer, texts):
                found[words] = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
            layer = [(*words, name) for words, text in zip(layer, texts) for name in subcommands(text)]
    return found


def known_to(code: str, helps: dict[tuple[str, ...], set[str]]) -> set[str]:
    """The flags that a piece of code may have: those of the command that it begins with, else all."""
    words = code.split()
    if words and words[0] in ("evidenceos", "evidenceos-daemon"):
        words = words[1:]
    # Commands of the daemon are called without `admin` too.
    lengths = [(size, (*prefix, *words[:size])) for size in range(len(words), 0, -1) for prefix in ((), ("admin",))]
    named = [(size, path) for size, path in lengths if path in helps]
    if not named:
        return set().union(*helps.values())
    longest = named[0][0]
    return helps[()].union(*(helps[path] for size, path in named if size == longest))


def unknown_flags(program: Path, documents: list[str], foreign: dict[str, set[str]], is_whole: bool) -> list[str]:
    helps = help_texts(program)
    ours = set().union(*helps.values())
    others = set().union(*foreign.values())
    problems, used = [], set()
    for document in documents:
        for line, flag, code in markdown.flags((ROOT / document).read_text()):
            used.add(flag)
            if flag not in known_to(code, helps) | others:
                problems.append(f"{document}:{line}: `{code}`: no help text of this command has {flag}")
    if is_whole:
        problems += [f"elsewhere.toml: no document has the flag {flag}" for flag in sorted(others - used)]
        problems += [f"elsewhere.toml: {flag} is a flag of ours" for flag in sorted(others & ours)]
    return problems


# --- the run -----------------------------------------------------------------------------------------


def stale(tables: Tables, documents: list[str]) -> list[str]:
    """Entries of the tables that no document has."""
    there = {
        (document, command.key)
        for document in documents
        for command in markdown.commands(document, (ROOT / document).read_text())
    }
    missing = [("elsewhere.toml", *entry) for entry in tables.elsewhere if entry not in there]
    for document, setup in tables.setups.items():
        named = [step["command"] for step in setup.get("before", [])] + list(setup.get("endless", {}))
        missing += [("setups.toml", document, command) for command in named if (document, command) not in there]
    return [
        f"{table}: {document} does not have `{command}`"
        for table, document, command in missing
        if document in documents or not (ROOT / document).exists()
    ]


def show(report: Report, is_verbose: bool) -> None:
    print(
        f"{report.document}: {report.run} run, {report.elsewhere} elsewhere, {report.compared} compared"
        f" ({report.seconds:.1f} s)"
    )
    for said in report.said if is_verbose else []:
        print("  " + said.rstrip().replace("\n", "\n    "))
    for problem in report.problems:
        print("FAILED: " + problem.rstrip().replace("\n", "\n    "))
    sys.stdout.flush()


def interrupted(*_) -> None:
    stage.kill_all()
    sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path, help="the program `evidenceos`")
    parser.add_argument("documents", nargs="*", help="only these, as paths from the root")
    parser.add_argument("--verbose", action="store_true", help="show each command with what it prints")
    parser.add_argument("--jobs", type=int, default=2, help="documents at a time [default: 2]")
    return parser.parse_intermixed_args()


def main() -> int:
    given = arguments()
    program = given.program.resolve(strict=True)
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    began = time.monotonic()
    documents = given.documents or all_documents()
    try:
        tables = read_tables()
        unknown = [document for document in documents if document not in all_documents()]
        if unknown:
            raise Wrong(f"no documents: {', '.join(unknown)}")
    except (Wrong, KeyError, tomllib.TOMLDecodeError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 2

    problems = stale(tables, documents)
    problems += unknown_flags(program, documents, tables.foreign_flags, not given.documents)
    reports = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for report in pool.map(lambda name: play(program, name, tables, began + TOTAL_SECONDS), documents):
            show(report, given.verbose)
            reports.append(report)
    for problem in problems:
        print(f"FAILED: {problem}")
    failures = len(problems) + sum(len(report.problems) for report in reports)
    print(
        f"{len(reports)} documents: {sum(r.run for r in reports)} commands run,"
        f" {sum(r.elsewhere for r in reports)} elsewhere, {sum(r.compared for r in reports)} outputs compared,"
        f" {failures} failures, {time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
