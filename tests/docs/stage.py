"""Where the commands of one document run: a scratch directory, ports of its own, and servers.

What the documents write is taken as it stands but for the list `Stage.staged`: default ports, directories
of the system, the published log, and the key id that a reader copies from the line above.
"""

import functools
import http.server
import itertools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from markdown import joined

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 60
STOP_SECONDS = 20
# Of the system in the documents, below the scratch directory here.
SYSTEM_DIRECTORIES = ("/srv/", "/mnt/", "/run/evidenceos", "/etc/evidenceos", "/var/lib/evidenceos")
DEFAULT_PORTS = ("50051", "8081", "9464")
# What would change the machine, or needs more than the program: never run, so that it must be listed.
OUTSIDE = re.compile(
    r"(?:^|[|&;(`]\s*|\n\s*)(?:\w+=\S+\s+)*"
    r"(?:sudo|docker|docker-compose|kubectl|helm|systemctl|systemd-\w+|cargo|rustup|just|apt|apt-get|dpkg|aws|gcloud|az)\b"
    r"|(?<![\w.-])/(?:bin|boot|etc|lib|opt|root|sbin|usr|var)/"
)
SERVER = re.compile(r"^(?:[A-Z_]+=\S+ +)*(?:evidenceos serve|evidenceos-daemon)(?: +-.*| *&?)$", re.S)

_groups: set[int] = set()
_ports = itertools.count(12000 + os.getpid() % 18000)
interrupted = threading.Event()


class Failed(Exception):
    """A command did not do what the document says."""


def spawn(command: list[str], **options) -> subprocess.Popen:
    """A process in a group of its own, so that what it starts ends with it."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _groups.add(process.pid)
    return process


def end(process: subprocess.Popen) -> None:
    """Asks the group to end, and kills it if it does not."""
    signals = [(signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)]
    for number, seconds in signals:
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        break
    _groups.discard(process.pid)


def kill_all() -> None:
    """For a run that is interrupted: nothing that it started stays, and nothing more starts."""
    interrupted.set()
    for group in list(_groups):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass


def free_ports(count: int) -> list[str]:
    """Ports that nothing else gets, if it lets the system choose: below those that the system chooses from."""
    found: list[str] = []
    while len(found) < count:
        # One after the other, so that two documents never have the same.
        port = next(_ports)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(str(port))
    return found


class Shell:
    """A terminal: variables, functions and the directory last from command to command."""

    def __init__(self, directory: Path, private: Path, environment: dict[str, str]):
        self.private = private
        self.process = spawn(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=environment,
        )
        self._send("set -o pipefail")

    def _send(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def run(self, text: str, seconds: float) -> tuple[int, str]:
        """The exit status, and both streams as a terminal would show them."""
        script, output = self.private / "command", self.private / "output"
        script.write_text(text + "\n")
        self._send(f'source "{script}" >"{output}" 2>&1 </dev/null; echo "$?"')
        ready, _, _ = select.select([self.process.stdout], [], [], max(seconds, 0))
        status = self.process.stdout.readline().strip() if ready else b""
        printed = output.read_text(errors="replace")
        if not status:
            raise Failed(f"it did not end within {seconds:.0f} s, or ended the shell:\n{printed}")
        return int(status), printed

    def export(self, name: str, value: str) -> None:
        self._send(f'export {name}="{value}"')

    def close(self) -> None:
        end(self.process)
        self.process.stdin.close()
        self.process.stdout.close()


class Stage:
    """The scratch directory of one document, and what runs in it."""

    def __init__(self, program: Path, deadline: float, directory: str = "."):
        self.deadline = deadline
        self.scratch = Path(tempfile.mkdtemp(prefix="evidenceos-docs-")).resolve()
        # Where the document's reader is.
        self.home = self.scratch / directory
        self.home.mkdir(parents=True, exist_ok=True)
        self.private = self.scratch / ".test"
        self.private.mkdir()
        self.ports = dict(zip(DEFAULT_PORTS, free_ports(3)))
        self.published = ""
        self.key_id = "KEY-ID"
        # What a shown id stands for in this run.
        self.ids: dict[str, str] = {}
        self.environment = self._environment(program)
        self.shell: Shell | None = None
        self.server: subprocess.Popen | None = None
        self.web: http.server.ThreadingHTTPServer | None = None
        write_fixtures(self.home)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_) -> None:
        if self.shell:
            self.shell.close()
        self.stop_server()
        if self.web:
            self.web.shutdown()
            self.web.server_close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _environment(self, program: Path) -> dict[str, str]:
        binaries = self.private / "bin"
        binaries.mkdir()
        for name in ("evidenceos", "evidenceos-daemon"):
            (binaries / name).symlink_to(program)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVIDENCEOS_")}
        return kept | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(self.scratch),
            "TREE": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "NO_PROXY": "*",
            "no_proxy": "*",
            "PYTHONDONTWRITEBYTECODE": "1",
            "EVIDENCEOS_ENDPOINT": f"http://127.0.0.1:{self.ports['50051']}",
        }

    # --- what is written in the document, and what runs -----------------------------------------

    def staged(self, text: str) -> str:
        """A document's command as it runs here."""
        # `0.0.0.0` would serve to other machines.
        for host, here in (("localhost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")):
            for port, mine in self.ports.items():
                text = re.sub(rf"\b{re.escape(host)}:{port}\b", f"{here}:{mine}", text)
        for directory in SYSTEM_DIRECTORIES:
            text = re.sub(rf"(?<![\w.$}}/-]){directory}", f"{self.scratch}{directory}", text)
        if "https://log.example.org/" in text:
            text = text.replace("https://log.example.org/", self.published_log())
        text = re.sub(r"\bKEY-ID\b", self.key_id, text)
        for shown, actual in self.ids.items():
            text = text.replace(shown, actual)
        return text

    def unstaged(self, printed: str) -> str:
        """What was printed, in the document's words."""
        for port, mine in self.ports.items():
            printed = re.sub(rf"(?<=:){mine}\b", port, printed)
        if self.published:
            printed = printed.replace(self.published, "https://log.example.org/")
        for directory in SYSTEM_DIRECTORIES:
            printed = printed.replace(f"{self.scratch}{directory}", directory)
        return printed.replace(f"{self.home}/", "")

    def published_log(self) -> str:
        """The log that others publish: files in `published`, over HTTP."""
        if self.web is None:
            directory = self.home / "published"
            directory.mkdir(exist_ok=True)
            handler = functools.partial(QuietFiles, directory=directory)
            self.web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=self.web.serve_forever, daemon=True).start()
            self.published = f"http://127.0.0.1:{self.web.server_port}/"
        return self.published

    # --- commands -----------------------------------------------------------------------------------

    def new_terminal(self) -> None:
        if self.shell:
            self.shell.close()
        self.shell = Shell(self.home, self.private, self.environment)

    def run(self, text: str) -> tuple[int, str]:
        """Runs a command of a document or of its setup."""
        text = self.staged(text)
        plain = joined(text)
        if plain == "STOP":
            self.stop_server()
            return 0, ""
        if OUTSIDE.search(plain):
            raise Failed("it cannot run in a scratch directory: list it in elsewhere.toml")
        if SERVER.match(plain):
            return 0, self.serve(plain.removesuffix("&").strip())
        assert self.shell
        status, printed = self.shell.run(text, self.seconds())
        made = re.findall(r"\b([0-9a-f]{64})\.key\b", printed) if "keys generate" in text else []
        self.key_id = made[-1] if made else self.key_id
        self._point_profiles_here()
        return status, printed

    def run_endless(self, text: str, cause: str) -> tuple[int, str]:
        """Runs a command that only ends when it is stopped, until it has printed what another one caused."""
        output = self.private / "endless"
        with output.open("wb") as file:
            process = spawn(
                ["bash", "-c", self.staged(text)],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(process, lambda: self.run(cause) and output.stat().st_size > 0)
        finally:
            end(process)
        return 0, output.read_text()

    def _point_profiles_here(self) -> None:
        """`lab init` writes profiles for the default port."""
        for profile in self.home.glob("*/clients/*/profile.toml"):
            text = profile.read_text()
            here = text.replace(":50051", f":{self.ports['50051']}")
            if here != text:
                profile.write_text(here)

    def seconds(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0 or interrupted.is_set():
            raise Failed("the time for all documents is over")
        return min(COMMAND_SECONDS, left)

    # --- servers ------------------------------------------------------------------------------------

    def serve(self, text: str) -> str:
        """Starts a server that the document starts. It takes the place, and the ports, of the one before."""
        self.stop_server()
        output = self.private / "server"
        addresses = {
            "EVIDENCEOS_LISTEN": self.ports["50051"],
            "EVIDENCEOS_PREFLIGHT_LISTEN": self.ports["8081"],
            "EVIDENCEOS_METRICS_LISTEN": self.ports["9464"],
        }
        with output.open("wb") as file:
            self.server = spawn(
                ["bash", "-c", text],
                cwd=self.home,
                env=self.environment | {name: f"127.0.0.1:{port}" for name, port in addresses.items()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._wait(self.server, lambda: "Log key: " in output.read_text(errors="replace"))
        has_tls = "--tls-cert" in text or "EVIDENCEOS_TLS_CERT" in self.environment
        scheme = "https://localhost" if has_tls else "http://127.0.0.1"
        self.environment["EVIDENCEOS_ENDPOINT"] = f"{scheme}:{self.ports['50051']}"
        if self.shell:
            self.shell.export("EVIDENCEOS_ENDPOINT", self.environment["EVIDENCEOS_ENDPOINT"])
        printed = output.read_text()
        if "It serves reads only" in printed:
            raise Failed(f"the server serves reads only:\n{self.server_log()}")
        return printed

    def stop_server(self) -> None:
        if self.server:
            end(self.server)
            self.server = None

    def _wait(self, process: subprocess.Popen, is_there) -> None:
        """Until it is there; each look waits for the process's end, which comes at once or never."""
        until = time.monotonic() + self.seconds()
        while not is_there():
            try:
                process.wait(0.02)
                printed = self.server_log() if process is self.server else ""
                raise Failed(f"it ended with status {process.returncode}\n{printed}")
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    raise Failed("it printed nothing that says that it serves") from None

    def server_log(self) -> str:
        log = self.private / "server"
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def write_fixtures(directory: Path) -> None:
    """The files that the documents take as given. Nothing in them is random."""
    # Neither constant nor sorted, and a good model is wrong on every twentieth.
    labels = [item * item * 7 % 11 % 2 for item in range(1000)]
    predictions = [label ^ (item % 20 == 0) for item, label in enumerate(labels)]

    def write(name: str, header: str, rows) -> None:
        (directory / name).write_text("\n".join([header, *rows]) + "\n")

    write("labels.csv", "item,label", (f"i-{item},{label}" for item, label in enumerate(labels)))
    write("predictions.csv", "item,prediction", (f"i-{item},{one}" for item, one in enumerate(predictions)))
    # Of other items, and with the words of another program.
    words = ["benign", "malignant"]
    write(
        "export.csv",
        "patient_id;diagnosis",
        (f"p-{item};{words[item * item * 5 % 13 % 2]}" for item in range(600)),
    )
