#!/usr/bin/env python3
"""Play every mutant that cargo-mutants thinks of, as switches in one build.

cargo-mutants builds the sources once for each mutant; here `cargo mutants --list --json` only
says what to change, and the change is played as run.py plays its list: each function that has
mutants gets a copy of its body for each of them, and EVIDENCEOS_MUTANT chooses. What does not
compile is left out, as cargo-mutants does. Mutants of `const` functions and of functions that
return `impl Trait` cannot be played so; their number is printed.

examples:
  tests/mutants/campaign.py                                     all that .cargo/mutants.toml names
  tests/mutants/campaign.py -f crates/kernel/src/decide         files that begin so
  tests/mutants/campaign.py --since 40913db                     functions that are not in that commit
  tests/mutants/campaign.py --minutes 60                        as far as an hour goes
  tests/mutants/campaign.py --again LOG --with driver           what an earlier run's output says is not
                                                                caught, also by the tests of another crate

exit status: 0 if every mutant that was played is caught, 1 if one survives, 2 if it did not work.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True  # The tree stays clean.

import run  # noqa: E402
from run import ROOT, Binary, Wrong  # noqa: E402

HELPER = f'''//! Which mutant is on.

static ON: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {{
    std::env::var("{run.SWITCH}").map_or(0, |n| n.parse().expect("a number"))
}});

pub(crate) fn number() -> usize {{
    *ON
}}
'''

# Words that are no part of a body: strings, characters, comments, lifetimes.
OPAQUE = re.compile(
    r'//[^\n]*|/\*.*?\*/|r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.[^\']*|[^\'\\])\'|\'\w+', re.DOTALL
)


@dataclass
class Mutant:
    number: int
    name: str
    file: str
    function: tuple[int, int]
    place: tuple[int, int]
    replacement: str

    @property
    def package(self) -> str:
        return self.file.split("/")[1]


@dataclass
class Sources:
    """The text of each file, with the mutants that are still in."""

    texts: dict[str, str] = field(default_factory=dict)
    mutants: list[Mutant] = field(default_factory=list)
    not_played: int = 0
    unviable: int = 0


def offset(text: str, starts: list[int], at: dict) -> int:
    return starts[at["line"] - 1] + at["column"] - 1


def not_caught(output: Path) -> set[str]:
    """The mutants that an earlier run said are not caught, without their places: those move."""
    lines = output.read_text().splitlines()
    return {unplaced(line.split(": ", 1)[1]) for line in lines if re.match(r" *(not caught yet|survivor): ", line)}


def unplaced(name: str) -> str:
    return re.sub(r":\d+:\d+: ", ": ", name)


def squeezed(text: str) -> str:
    """The text without its comments, spaces and line ends: no mutant is in those."""
    return "".join(re.sub(r"//[^\n]*", "", text).split())


def sources_of(revision: str) -> str:
    """All that the crates said in a commit, squeezed."""
    command = ["git", "grep", "--no-color", "-h", "", revision, "--", "crates/*.rs"]
    return squeezed(subprocess.check_output(command, cwd=ROOT, text=True))


def listed(beginnings: tuple[str, ...], again: set[str] | None, before: str) -> Sources:
    """The mutants of .cargo/mutants.toml whose file begins so, that are among these, and in functions
    that are not in what was before."""
    rows = json.loads(subprocess.check_output(["cargo", "mutants", "--list", "--json"], cwd=ROOT))
    sources = Sources()
    for row in rows:
        name, function = row["file"], row.get("function")
        if beginnings and not name.startswith(beginnings):
            continue
        if again is not None and unplaced(row["name"]) not in again:
            continue
        if name not in sources.texts:
            sources.texts[name] = (ROOT / name).read_text()
        text = sources.texts[name]
        starts = [0] + [match.end() for match in re.finditer("\n", text)]
        span = lambda s: (offset(text, starts, s["start"]), offset(text, starts, s["end"]))
        if function and squeezed(text[slice(*span(function["span"]))]) in before:
            continue
        if not function or not playable(text, span(function["span"])):
            sources.not_played += 1
            continue
        mutant = Mutant(
            len(sources.mutants) + 1, row["name"], name,
            span(function["span"]), span(row["span"]), row["replacement"],
        )  # fmt: skip
        sources.mutants.append(mutant)
    # In the order in which the files were asked for.
    asked = lambda m: next((i for i, b in enumerate(beginnings) if m.file.startswith(b)), 0)
    sources.mutants.sort(key=asked)
    return sources


def body_of(text: str, function: tuple[int, int]) -> tuple[int, int]:
    """The places of the body's braces."""
    start, end = function
    opaque = [match.span() for match in OPAQUE.finditer(text, start, end)]
    hidden = lambda at: any(a <= at < b for a, b in opaque)
    keyword = next(m.end() for m in re.finditer(r"\bfn\b", text[start:end]) if not hidden(start + m.start()))
    depth = 0
    for at in range(start + keyword, end):
        if hidden(at):
            continue
        depth += (text[at] in "([") - (text[at] in ")]")
        if text[at] == "{" and depth == 0:
            return at, text.rindex("}", at, end)
    raise Wrong(f"no body in {text[start:start + 80]!r}")


def playable(text: str, function: tuple[int, int]) -> bool:
    opening, _ = body_of(text, function)
    head = OPAQUE.sub("", text[function[0] : opening])
    return not re.search(r"\bconst fn\b", head) and not re.search(r"->.*\bimpl\b", head, re.DOTALL)


def with_switches(text: str, mutants: list[Mutant]) -> tuple[str, list[tuple[int, int, Mutant]]]:
    """The text with a body for each mutant, and the lines of each."""
    functions: dict[tuple[int, int], list[Mutant]] = {}
    for mutant in mutants:
        functions.setdefault(mutant.function, []).append(mutant)
    for outer in list(functions):
        for inner in list(functions):
            if outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]:
                # A function within a function: with the outer body it would be copied.
                del functions[inner]
    pieces, lines, at, line = [], [], 0, 1

    def put(piece: str) -> None:
        nonlocal line
        pieces.append(piece)
        line += piece.count("\n")

    for function in sorted(functions):
        opening, closing = body_of(text, function)
        put(text[at : opening + 1] + " match crate::mutant::number() {\n")
        for mutant in functions[function]:
            start, end = mutant.place
            first = line
            put(
                f"{mutant.number} => {{ {text[opening + 1 : start]}{mutant.replacement}"
                f"{text[end:closing]} }}\n"
            )
            lines.append((first, line - 1, mutant))
        put(f"_ => {{ {text[opening + 1 : closing]} }}\n}} ")
        at = closing
    put(text[at:])
    return "".join(pieces), lines


def write(sources: Sources, files: dict[str, bytes], copy: Path) -> dict[str, list]:
    lines = {}
    for name, text in sources.texts.items():
        own = [mutant for mutant in sources.mutants if mutant.file == name]
        changed, lines[name] = with_switches(text, own)
        files[name] = changed.encode()
    run.write_tree(files, copy)
    return lines


def leave_out_unviable(sources: Sources, files: dict[str, bytes], copy: Path, target: Path) -> None:
    packages = sorted({mutant.package for mutant in sources.mutants})
    command = ["cargo", "check", "--locked", "--message-format=json"]
    command += [f"-pevidenceos-{package}" for package in packages]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    while True:
        lines = write(sources, files, copy)
        process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if process.returncode == 0:
            return
        bad = set()
        for message in map(json.loads, process.stdout.splitlines()):
            if message["reason"] != "compiler-message" or message["message"]["level"] != "error":
                continue
            for span in message["message"]["spans"]:
                at = next((name for name in lines if span["file_name"].endswith(name)), None)
                bad |= {
                    mutant.number
                    for first, last, mutant in lines.get(at, [])
                    if span["is_primary"] and first <= span["line_start"] <= last
                }
        if not bad:
            raise Wrong(process.stderr[-3000:])
        print(f"  {len(bad)} more do not compile", flush=True)
        sources.unviable += len(bad)
        sources.mutants = [mutant for mutant in sources.mutants if mutant.number not in bad]


# Tests of a minute or so: asked last.
SLOW = {
    ("kernel", "rules"): ["attacks::boosting", "attacks::streams"],
    ("verify", "verify"): ["no_small_change_is_accepted_that_is_not_a_statement"],
}


# What run.py says of a test that it ended.
HANGS = "it hangs"


def quick(binaries: list[Binary]) -> list[tuple[Binary, list[str]]]:
    skipping = lambda names: [word for name in names for word in ("--skip", name)]
    return [(b, skipping(SLOW.get((b.package, b.target), []))) for b in binaries]


def slow(binaries: list[Binary]) -> list[tuple[Binary, list[str]]]:
    return [(b, SLOW[b.package, b.target]) for b in binaries if (b.package, b.target) in SLOW]


def limits(tests: list[tuple[Binary, list[str]]]) -> list[tuple[Binary, list[str], float]]:
    """The tests, each with its limit in seconds: they are run without a mutant first."""
    limited = []
    for binary, arguments in tests:
        outcome = run.run(binary, 0, 900, *arguments)
        if outcome.failed:
            raise Wrong(f"{binary.target} fails without a mutant: {outcome.first_failure}")
        limited.append((binary, arguments, max(30, 5 * outcome.seconds)))
    return limited


def caught_by(mutant: Mutant, tests: list[tuple[Binary, list[str], float]]) -> str | None:
    own_first = sorted(tests, key=lambda t: (t[0].package != mutant.package, t[0].target != "lib"))
    for binary, arguments, limit in own_first:
        outcome = run.run(binary, mutant.number, limit, *arguments)
        if HANGS in outcome.first_failure:
            # Other work may have slowed the machine down since the limit was set.
            limit = max(limit, 10 * run.run(binary, 0, 900, *arguments).seconds)
            outcome = run.run(binary, mutant.number, limit, *arguments)
        if outcome.failed:
            return f"{binary.package}:{binary.target}:{outcome.first_failure}"
    return None


def play(mutants: list[Mutant], tests: list, jobs: int, deadline: float, played: Counter) -> list[Mutant]:
    """Those that no test catches."""
    left = []

    def judge(mutant: Mutant) -> tuple[Mutant, bool, str | None]:
        in_time = time.monotonic() < deadline
        return mutant, in_time, caught_by(mutant, tests) if in_time else None

    with ThreadPoolExecutor(jobs) as pool:
        for done, (mutant, in_time, test) in enumerate(pool.map(judge, mutants), 1):
            if not in_time:
                played["out of time"] += 1
            elif test is None:
                left.append(mutant)
                print(f"  not caught yet: {mutant.name}", flush=True)
            else:
                played["hung" if HANGS in test else "caught"] += 1
                if HANGS in test:
                    print(f"  hung: {mutant.name}: {test}", flush=True)
            if done % 50 == 0:
                print(f"  {done} of {len(mutants)}: {dict(played)}", flush=True)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-f", "--file", action="append", default=[], metavar="PATH", help="only files that begin so")
    parser.add_argument("--since", metavar="COMMIT", help="only functions that are not in this commit")
    parser.add_argument("--again", type=Path, metavar="LOG", help="only what this output of a run says is not caught")
    parser.add_argument("--with", dest="others", action="append", default=[], metavar="CRATE", help="also run this crate's tests")
    parser.add_argument("--without-slow", action="store_true", help="leave out the tests of a minute")
    parser.add_argument("--minutes", type=float, default=10_000, help="play no mutant after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="mutants at a time")
    options = parser.parse_args()

    deadline = time.monotonic() + 60 * options.minutes
    again = options.again and not_caught(options.again)
    before = sources_of(options.since) if options.since else ""
    sources = listed(tuple(options.file), again, before)
    print(f"{len(sources.mutants)} mutants, {sources.not_played} more cannot be switched", flush=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    copy = target / "mutants" / "campaign"
    packages = {mutant.package for mutant in sources.mutants}
    files = run.files_of(packages, HELPER, "0.0.2", set(options.others))
    leave_out_unviable(sources, files, copy, target)
    binaries = run.build(copy, target, packages | set(options.others))
    quick_tests = limits(quick(binaries))
    slow_tests = [] if options.without_slow else limits(slow(binaries))
    print(f"  built; {len(sources.mutants)} to play, {sources.unviable} do not compile", flush=True)

    played: Counter[str] = Counter()
    left = play(sources.mutants, quick_tests, options.jobs, deadline, played)
    survivors = play(left, slow_tests, options.jobs, float("inf"), played)
    print(
        f"{dict(played)}, {len(survivors)} survive; "
        f"{sources.unviable} do not compile, {sources.not_played} cannot be switched"
    )
    for mutant in survivors:
        print(f"survivor: {mutant.name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Wrong as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
