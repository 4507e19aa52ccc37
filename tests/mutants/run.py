#!/usr/bin/env python3
"""Apply the listed mutants to a copy of the sources and demand that a test fails for each.

Every mutant of the list becomes a switch, `if on(n) { mutated } else { original }`, in a copy of
the working tree under the target directory; the environment variable EVIDENCEOS_MUTANT chooses
one at run time. So all mutants are one build, and the repository has none of their code.

For each mutant the test that the list names runs first, then every other test binary until one
fails. A mutant under which everything passes is a survivor: add a test that catches it.

examples:
  tests/mutants/run.py                               the whole list, as CI does
  tests/mutants/run.py --only k-is-frozen            one mutant
  tests/mutants/run.py --area price --area evidence  the mutants of two areas
  tests/mutants/run.py --check                       only whether each original still matches

exit status: 0 if every mutant is caught, 1 if one survives, 2 if the list or the build is wrong.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWITCH = "EVIDENCEOS_MUTANT"
MOST = 40
AREAS = {
    "price", "evidence", "score", "split", "decide",
    "capsule", "opening", "log", "trust", "check",
}  # fmt: skip

HELPER = f'''//! Which mutant of tests/mutants/list.toml is on.

static ON: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {{
    std::env::var("{SWITCH}").map_or(0, |n| n.parse().expect("a number"))
}});

pub(crate) fn on(number: usize) -> bool {{
    *ON == number
}}
'''


class Wrong(Exception):
    """The list, the sources or the build are not what they should be."""


@dataclass(frozen=True)
class Mutant:
    number: int
    name: str
    area: str
    file: str
    original: str
    context: str
    mutated: str
    caught_by: str | None

    @property
    def package(self) -> str:
        return self.file.split("/")[1]


def read_list(path: Path) -> list[Mutant]:
    rows = tomllib.loads(path.read_text())["mutant"]
    mutants = []
    for number, row in enumerate(rows, 1):
        row.setdefault("context", row.get("original"))
        row.setdefault("caught_by", None)
        try:
            mutant = Mutant(number=number, **row)
        except TypeError as error:
            raise Wrong(f"mutant {number} ({row.get('name')}): {error}") from error
        if mutant.area not in AREAS:
            raise Wrong(f"{mutant.name}: no area {mutant.area}; there are {', '.join(sorted(AREAS))}")
        mutants.append(mutant)
    names = [mutant.name for mutant in mutants]
    if len(set(names)) < len(names):
        raise Wrong("two mutants have the same name")
    if len(mutants) > MOST:
        raise Wrong(f"the list has {len(mutants)} mutants, at most {MOST} are allowed")
    return mutants


def only_place(text: str, wanted: str, what: str) -> tuple[int, int]:
    """The place of `wanted`, which must be there once; runs of white space match one another."""
    pattern = r"\s+".join(re.escape(word) for word in wanted.split())
    places = [match.span() for match in re.finditer(pattern, text)]
    if len(places) != 1:
        raise Wrong(f"{what} matches {len(places)} times instead of once: {wanted!r}")
    return places[0]


def place_of(mutant: Mutant, text: str) -> tuple[int, int]:
    what = f"{mutant.name}, {mutant.file}:"
    start, end = only_place(text, mutant.context, f"{what} the context")
    inner = only_place(text[start:end], mutant.original, f"{what} the original within its context")
    return start + inner[0], start + inner[1]


def rewritten(text: str, mutants: list[Mutant]) -> str:
    """The text with a switch at the place of each mutant; several may share one place."""
    places: dict[tuple[int, int], list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault(place_of(mutant, text), []).append(mutant)
    ordered = sorted(places)
    for before, after in zip(ordered, ordered[1:]):
        if after[0] < before[1]:
            names = places[before] + places[after]
            raise Wrong("places overlap: " + ", ".join(mutant.name for mutant in names))
    for start, end in reversed(ordered):
        switch = "(" + "".join(
            f"if crate::mutant::on({mutant.number}) {{ {mutant.mutated} }} else "
            for mutant in places[start, end]
        )
        text = f"{text[:start]}{switch}{{ {text[start:end]} }}){text[end:]}"
    return text


def cargo_json(*arguments: str, cwd: Path = ROOT) -> dict:
    return json.loads(subprocess.check_output(["cargo", *arguments], cwd=cwd))


def packages() -> dict[str, dict]:
    """The workspace's packages by the name of their directory."""
    metadata = cargo_json("metadata", "--no-deps", "--format-version=1", "--locked")
    return {Path(p["manifest_path"]).parent.name: p for p in metadata["packages"]}


def with_dependencies(wanted: set[str], known: dict[str, dict]) -> set[str]:
    """The packages, and those of the workspace that they are built with."""
    whole: set[str] = set()
    while wanted:
        whole |= wanted
        paths = [d["path"] for name in wanted for d in known[name]["dependencies"] if d.get("path")]
        wanted = {Path(path).name for path in paths} - whole
    return whole


# Cargo names what it builds by package and version, not by place. Under its own version the copy can
# share a target directory with the real sources, and nothing that is mutated is ever taken for them.
def with_version(files: dict[str, bytes], known: dict[str, dict], version: str) -> None:
    real = {package["version"] for package in known.values()}
    if len(real) != 1:
        raise Wrong(f"the packages have several versions: {real}")
    old = f'version = "{real.pop()}"'
    for name, before in [("Cargo.toml", r"^\[workspace\.package\]\n")] + [
        ("Cargo.lock", rf'^name = "{re.escape(package["name"])}"\n') for package in known.values()
    ]:
        text, times = re.subn(
            f"(?m)({before}){re.escape(old)}$", rf'\g<1>version = "{version}"', files[name].decode()
        )
        if times != 1:
            raise Wrong(f"{name} has no version after {before}")
        files[name] = text.encode()


def files_of(
    mutated: set[str], helper: str, version: str, others: set[str] = frozenset()
) -> dict[str, bytes]:
    """The files of the copy, with a module for the switch in each mutated package.

    `others` are packages that are kept for their tests.

    Other packages are empty libraries that keep their dependencies. Features are then unified as
    for the whole workspace, so that every dependency is the one that `cargo test --workspace` has
    built already.
    """
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    names = [name.decode() for name in listed.split(b"\0") if name and (ROOT / name.decode()).is_file()]
    known = packages()
    kept = with_dependencies(set(mutated) | others, known)
    files = {}
    for name in names:
        of = name.split("/")[1] if name.startswith("crates/") else None
        if of is None or of in kept:
            files[name] = (ROOT / name).read_bytes()
    for name in known.keys() - kept:
        manifest = (ROOT / f"crates/{name}/Cargo.toml").read_text()
        # Without programs: they would be put where the real ones are.
        sections = r"(?ms)^\[(lib|\[(bin|test|bench|example)\])\]\n.*?(?=^\[|\Z)"
        manifest = re.sub(sections, "", manifest)
        manifest = re.sub(r"(?m)^(default-run|build) = .*\n", "", manifest)
        files[f"crates/{name}/Cargo.toml"] = manifest.encode()
        files[f"crates/{name}/src/lib.rs"] = b""
    for name in mutated:
        files[f"crates/{name}/src/lib.rs"] += b"\nmod mutant;\n"
        files[f"crates/{name}/src/mutant.rs"] = helper.encode()
    with_version(files, known, version)
    return files


def tree(mutants: list[Mutant]) -> dict[str, bytes]:
    """The files of the copy, with a switch for each mutant."""
    files = files_of({mutant.package for mutant in mutants}, HELPER, "0.0.1")
    for name in sorted({mutant.file for mutant in mutants}):
        if name not in files:
            raise Wrong(f"{name} is not there")
        own = [mutant for mutant in mutants if mutant.file == name]
        files[name] = rewritten(files[name].decode(), own).encode()
    return files


def write_tree(files: dict[str, bytes], to: Path) -> None:
    """Makes the directory hold just these files; what is as it was keeps its time."""
    for path in sorted(to.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(to)) not in files:
            path.unlink()
    for name, content in files.items():
        path = to / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        # Tests start some of the files as programs.
        if (ROOT / name).is_file():
            shutil.copymode(ROOT / name, path)


@dataclass(frozen=True)
class Binary:
    package: str
    target: str
    path: str
    directory: Path


def build(at: Path, target: Path, wanted: set[str]) -> list[Binary]:
    """Builds the tests of the copy; those of the mutated packages are returned."""
    command = ["cargo", "test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    process = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        errors = "\n".join(re.findall(r"(?ms)^error.*?(?=^\S|\Z)", process.stderr)) or process.stderr
        raise Wrong(f"the copy in {at} does not build; a mutant's expression is wrong\n{errors}")
    binaries = []
    for line in process.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] != "compiler-artifact" or not message["executable"]:
            continue
        directory = Path(message["manifest_path"]).parent
        if message["profile"]["test"] and directory.name in wanted:
            kinds = message["target"]["kind"]
            name = "lib" if "lib" in kinds else message["target"]["name"]
            binaries.append(Binary(directory.name, name, message["executable"], directory))
    return binaries


@dataclass
class Run:
    failed: bool
    tests: int
    first_failure: str
    seconds: float


def run(binary: Binary, number: int, timeout: float, *arguments: str) -> Run:
    environment = {
        **os.environ,
        SWITCH: str(number),
        "CARGO_MANIFEST_DIR": str(binary.directory),
        "RUST_BACKTRACE": "0",
    }
    started = time.monotonic()
    process = subprocess.Popen(
        [binary.path, *arguments],
        cwd=binary.directory, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Run(True, 1, f"nothing: it hangs ({timeout:.0f} s)", timeout)
    ran = re.search(r"^running (\d+) test", output, re.MULTILINE)
    failure = re.search(r"^test (\S+).* \.\.\. FAILED", output, re.MULTILINE)
    return Run(
        process.returncode != 0,
        int(ran[1]) if ran else 0,
        failure[1] if failure else f"exit status {process.returncode}",
        time.monotonic() - started,
    )


@dataclass
class Verdict:
    mutant: Mutant
    caught_by: str | None
    seconds: float
    note: str = ""


def judge(mutant: Mutant, binaries: list[Binary], timeouts: dict[Binary, float]) -> Verdict:
    started = time.monotonic()
    note = ""
    if mutant.caught_by:
        package, target, test = mutant.caught_by.split(":", 2)
        named = [b for b in binaries if (b.package, b.target) == (package, target)]
        if not named:
            raise Wrong(f"{mutant.name}: there is no test binary {package}:{target}")
        outcome = run(named[0], mutant.number, timeouts[named[0]], "--exact", test)
        if outcome.tests != 1:
            raise Wrong(f"{mutant.name}: there is no test {mutant.caught_by}")
        if outcome.failed:
            return Verdict(mutant, mutant.caught_by, time.monotonic() - started)
        note = f"not by {mutant.caught_by}"
    # The package's own tests first, quick ones before slow ones.
    for binary in sorted(binaries, key=lambda b: (b.package != mutant.package, timeouts[b])):
        outcome = run(binary, mutant.number, timeouts[binary])
        if outcome.failed:
            caught_by = f"{binary.package}:{binary.target}:{outcome.first_failure}"
            return Verdict(mutant, caught_by, time.monotonic() - started, note)
    return Verdict(mutant, None, time.monotonic() - started, note)


def without_mutants(binaries: list[Binary], least: float) -> dict[Binary, float]:
    """Runs every test binary with no switch on; says how long each may take with one."""
    timeouts = {}
    for binary in binaries:
        outcome = run(binary, 0, 600)
        what = f"{binary.package}:{binary.target}"
        if outcome.failed:
            raise Wrong(f"{what} fails without a mutant: {outcome.first_failure}")
        print(f"  no mutant: {what} passes, {outcome.tests} tests in {outcome.seconds:.1f} s", flush=True)
        timeouts[binary] = max(least, 5 * outcome.seconds)
    return timeouts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("list.toml"), metavar="FILE")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="judge this mutant")
    parser.add_argument("--area", action="append", default=[], metavar="AREA", help="judge this area's")
    parser.add_argument("--check", action="store_true", help="match the originals; build and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="mutants at a time")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="least limit of a test binary")
    options = parser.parse_args()

    started = time.monotonic()
    mutants = read_list(options.list)
    unknown = set(options.only) - {mutant.name for mutant in mutants} | set(options.area) - AREAS
    if unknown:
        raise Wrong(f"the list has no {', '.join(sorted(unknown))}")
    files = tree(mutants)
    print(f"{len(mutants)} mutants match their sources", flush=True)
    if options.check:
        return 0
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    copy = target / "mutants" / "tree"
    write_tree(files, copy)
    binaries = build(copy, target, {mutant.package for mutant in mutants})
    print(f"  built in {time.monotonic() - started:.0f} s", flush=True)
    timeouts = without_mutants(binaries, options.timeout)

    chosen = [
        mutant for mutant in mutants
        if not (options.only or options.area) or mutant.name in options.only or mutant.area in options.area
    ]  # fmt: skip
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(lambda mutant: judge(mutant, binaries, timeouts), chosen)
        for done, verdict in enumerate(verdicts, 1):
            mutant = verdict.mutant
            outcome = f"caught by {verdict.caught_by}" if verdict.caught_by else "SURVIVES"
            note = f" ({verdict.note})" if verdict.note else ""
            print(
                f"  [{done}/{len(chosen)}] {mutant.area}: {mutant.name}: {outcome}{note}, {verdict.seconds:.1f} s",
                flush=True,
            )
            if not verdict.caught_by:
                survivors.append(mutant)
    seconds = time.monotonic() - started
    print(f"{len(chosen)} mutants, {len(survivors)} survive, in {seconds:.0f} s")
    for mutant in survivors:
        print(f"survivor: {mutant.name} ({mutant.file}): {mutant.original} -> {mutant.mutated}", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Wrong as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
