"""What one caller at its worst, or many strangers, cost the others: docs/evidence/attacks.md.

A daemon is started on loopback with default limits. Beside each attack, which has a process of its own, an
honest submitter asks for Health and takes whole claims through; the daemon's memory is looked at meanwhile.

  attacks.py BIN DIR [--seconds S] [--report] [ATTACK…]
  attacks.py BIN DIR --shape FILE.wasm…        how far the daemon's memory moves while these are committed
  attacks.py BIN DIR --existence ROUNDS        whether another's claim takes longer than none

BIN is `evidenceos-daemon` or `evidenceos`, DIR an empty directory. Needs grpcio, and the modules that
grpc_tools.protoc makes of crates/proto/proto on PYTHONPATH; `just long attacks` sees to all of it.
"""

import argparse
import hashlib
import itertools
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import grpc
from evidenceos.v2 import evidenceos_pb2 as pb
from evidenceos.v2 import evidenceos_pb2_grpc as stubs

OPERATOR, HONEST, ATTACKER = "operator-token-000001", "honest-token-00000001", "attacker-token-000001"
ITEMS = 200
THREADS = 16
STRANGERS = 4_096
MEMORY = 4 << 30
UNTIL_IDLE_S = 60
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


# --- modules -------------------------------------------------------------------------------------


def number(value, last=0x7F):
    """In the groups of seven bits that Wasm and protobuf use; the last one is at most `last`."""
    out = bytearray()
    while value > last:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def signed(value):
    """A constant as Wasm writes it, not below zero: its last group has a bit for the sign."""
    return number(value, last=0x3F)


def section(kind, body):
    return bytes([kind]) + number(len(body)) + body


def text(word):
    return number(len(word)) + word.encode()


def module(code, data=b"", imports=("submit_predictions", "emit_structured_claim")):
    """A guest with one function. Type 0 is of submissions, 1 of the output, 2 of the function."""
    kinds = {"submit_predictions": 0, "emit_structured_claim": 1}
    types = b"\x03" + b"\x60\x02\x7f\x7f\x01\x7f" + b"\x60\x02\x7f\x7f\x00" + b"\x60\x00\x00"
    imported = b"".join(text("env") + text(name) + bytes([0, kinds.get(name, 0)]) for name in imports)
    pages = (len(data) + 8 + 0xFFFF) // 0x10000 + 1
    exported = text("memory") + b"\x02\x00" + text("run") + b"\x00" + number(len(imports))
    body = b"\x01\x01\x7f" + code + b"\x0b"
    return (
        b"\x00asm\x01\x00\x00\x00"
        + section(1, types)
        + section(2, number(len(imports)) + imported)
        + section(3, b"\x01\x02")
        + section(5, b"\x01\x00" + number(pages))
        + section(7, b"\x02" + exported)
        + section(10, b"\x01" + number(len(body)) + body)
        + (section(11, b"\x01\x00\x41\x08\x0b" + number(len(data)) + data) if data else b"")
    )


def judged(predictions):
    """Submits predictions, and emits the zero byte before them."""
    submit = b"\x41\x08\x41" + signed(len(predictions)) + b"\x10\x00\x1a"
    return module(submit + b"\x41\x00\x41\x01\x10\x01", bytes(predictions))


def endless(seed):
    """Counts until its fuel is spent."""
    start = b"\x41" + signed(seed) + b"\x21\x00"
    return module(start + b"\x03\x40\x20\x00\x41\x01\x6a\x21\x00\x0c\x00\x0b")


def heavy_to_compile(seed, additions=90_000):
    """Two hundred thousand bytes of additions, that no other module has."""
    step = b"\x20\x00\x41\x01\x6a\x21\x00"
    return module(b"\x41" + signed(seed) + b"\x21\x00" + step * (additions // 3) + b"\x41\x00\x41\x01\x10\x01")


def large(seed, imports=("submit_predictions", "emit_structured_claim")):
    """Nearly four MiB of data, admitted unless an import is not known."""
    noise = random.Random(seed).randbytes((4 << 20) - 4_096)
    return module(b"\x41\x00\x41\x01\x10\x01", noise, imports=imports)


# --- calls ---------------------------------------------------------------------------------------


CALLERS = itertools.count()


class Caller:
    """A client with a token and a connection of its own."""

    def __init__(self, address, token, name):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
        self.stub = stubs.EvidenceOSStub(grpc.insecure_channel(address, options=options))
        self.metadata = [("authorization", f"Bearer {token}")]
        self.name = f"{name}-{os.getpid()}-{next(CALLERS)}"
        self.numbers = itertools.count()

    def call(self, method, request, timeout=60):
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=timeout)

    def claim(self, holdout, lane="fast"):
        name = f"{self.name}-{next(self.numbers)}"
        terms = pb.ClaimMetadataV2(lane=lane, alpha_micros=50_000, epoch_config_ref=name)
        create = pb.CreateClaimV2Request(
            claim_name=name, metadata=terms, holdout_ref=holdout, oracle_num_symbols=2
        )
        return self.call("CreateClaimV2", create).claim_id

    def commit(self, claim, wasm):
        artifact = pb.Artifact(artifact_hash=hashlib.sha256(wasm).digest(), kind="wasm")
        self.call("CommitArtifacts", pb.CommitArtifactsRequest(claim_id=claim, artifacts=[artifact], wasm_module=wasm))

    def life(self, holdout, wasm, lane="fast"):
        claim = self.claim(holdout, lane)
        self.commit(claim, wasm)
        self.call("SealClaim", pb.SealClaimRequest(claim_id=claim))
        return self.call("ExecuteClaimV2", pb.ExecuteClaimV2Request(claim_id=claim), timeout=300)


def put_holdout(caller, name):
    budget = 4_096_000_000
    header = pb.PutHoldoutHeader(
        holdout_ref=name,
        items=ITEMS,
        fresh_items=True,
        policy=pb.HoldoutPolicy(
            answer_budget_microbits=budget, principal_answer_budget_microbits=budget, sealed_budget_microbits=budget
        ),
        null_spec=pb.NullSpec(p0_micros=500_000),
    )
    labels = bytes(random.Random(name).choices((0, 1), k=ITEMS))
    parts = [pb.PutHoldoutRequest(header=header), pb.PutHoldoutRequest(chunk=pb.PutHoldoutChunk(labels=labels))]
    caller.call("PutHoldout", iter(parts))


# --- attacks -------------------------------------------------------------------------------------


def repeated(step):
    """An attack of many threads, each with a connection of its own, that do one thing again and again."""

    def attack(address, until):
        done = itertools.count()

        def go(thread):
            caller = Caller(address, ATTACKER, f"t{thread}")
            state = {}
            while time.monotonic() < until:
                try:
                    step(caller, state, thread)
                    next(done)
                except grpc.RpcError as error:
                    next(done)
                    state["last"] = error.code().name
                    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "busy" in state:
                        time.sleep(0.01)
            if thread == 0:
                print("last refusal:", state.get("last"), file=sys.stderr)

        threads = [threading.Thread(target=go, args=(thread,), daemon=True) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()) + 5)
        return next(done)

    return attack


def unknown(caller):
    return hashlib.sha256(f"{caller.name} {next(caller.numbers)}".encode()).digest()


def own(caller, state):
    """A claim of the attacker's that can be committed again and again."""
    if "claim" not in state:
        state["claim"] = caller.claim("theirs")
    return state["claim"]


def large_for_unknown(caller, state, thread):
    wasm = state.setdefault("wasm", large(thread))
    caller.commit(unknown(caller), wasm)


def large_with_late_id(caller, state, thread):
    """The module first and the claim's id after it: raw bytes, which protobuf takes in any order."""
    if "body" not in state:
        wasm = large(thread)
        state["body"] = b"\x1a" + number(len(wasm)) + wasm
        channel = grpc.insecure_channel(caller_address, options=[("grpc.use_local_subchannel_pool", 1)])
        state["method"] = channel.unary_unary("/evidenceos.v2.EvidenceOS/CommitArtifacts")
    state["method"](state["body"] + b"\x0a\x20" + unknown(caller), metadata=caller.metadata, timeout=60)


def large_refused(caller, state, thread):
    wasm = state.setdefault("wasm", large(thread, imports=("submit_predictions", "no_such_function")))
    caller.commit(own(caller, state), wasm)


def large_again(caller, state, thread):
    state["busy"] = True
    seed = next(caller.numbers) * THREADS + thread
    caller.commit(own(caller, state), large(seed % 64))


def compiles(caller, state, thread):
    state["busy"] = True
    caller.commit(own(caller, state), heavy_to_compile(next(caller.numbers) * THREADS + thread))


def heavy_runs(caller, state, thread):
    caller.life("theirs", endless(next(caller.numbers) * THREADS + thread), lane="heavy")


def fast_runs(caller, state, thread):
    caller.life("theirs", endless(next(caller.numbers) * THREADS + thread))


def claims(caller, state, thread):
    predictions = random.Random(next(caller.numbers) * THREADS + thread).choices((0, 1), k=ITEMS)
    caller.life("theirs", judged(predictions))


def creates(caller, state, thread):
    caller.claim("theirs")


def executes(caller, state, thread):
    caller.call("ExecuteClaimV2", pb.ExecuteClaimV2Request(claim_id=unknown(caller)))


def entries(caller, state, thread):
    caller.call("ListEntries", pb.ListEntriesRequest(start=0, count=256))


def info(caller, state, thread):
    caller.call("GetServerInfo", pb.GetServerInfoRequest())


def large_unknown_fields(caller, state, thread):
    """A quarter of a MiB in a call that brings nothing."""
    if "method" not in state:
        channel = grpc.insecure_channel(caller_address, options=[("grpc.use_local_subchannel_pool", 1)])
        state["method"] = channel.unary_unary("/evidenceos.v2.EvidenceOS/GetServerInfo")
        state["body"] = b"\xfa\x3f" + number(250_000) + bytes(250_000)
    state["method"](state["body"], metadata=caller.metadata, timeout=60)


def wrong_tokens(caller, state, thread):
    caller.stub.GetServerInfo(
        pb.GetServerInfoRequest(), metadata=[("authorization", f"Bearer {next(caller.numbers):040}")], timeout=60
    )


def health(caller, state, thread):
    caller.stub.Health(pb.HealthRequest(), timeout=60)


def watches(address, until):
    """As many watches as the server lets a principal have, given up and begun again."""
    callers = [Caller(address, ATTACKER, f"w{thread}") for thread in range(THREADS)]
    begun = 0
    while time.monotonic() < until:
        calls = []
        for caller in callers:
            for _ in range(32):
                calls.append(caller.stub.WatchRevocations(pb.WatchRevocationsRequest(), metadata=caller.metadata))
        begun += len(calls)
        time.sleep(0.5)
        for call in calls:
            call.cancel()
    return begun


def strangers(first):
    """Connections that send some bytes and no more, and come again when they are closed."""

    def attack(address, until):
        host, port = address.rsplit(":", 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (STRANGERS + 256,) * 2)
        sockets, opened = {}, 0
        while time.monotonic() < until:
            for place in range(STRANGERS):
                if place in sockets:
                    continue
                # From two addresses: of one the server takes half as many.
                peer = socket.socket()
                peer.bind((f"127.0.0.{2 + place % 2}", 0))
                try:
                    peer.connect((host, int(port)))
                    peer.sendall(first)
                except OSError:
                    continue
                peer.setblocking(False)
                sockets[place] = peer
                opened += 1
                if time.monotonic() > until:
                    break
            for place, peer in list(sockets.items()):
                try:
                    while peer.recv(4_096):
                        pass
                    peer.close()
                    del sockets[place]
                except BlockingIOError:
                    pass
                except OSError:
                    peer.close()
                    del sockets[place]
            time.sleep(0.2)
        return opened

    return attack


def frame(kind, flags, stream, body=b""):
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def call_headers(stream, method):
    """The head of a call, each field literally."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/evidenceos.v2.EvidenceOS/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": f"Bearer {ATTACKER}",
    }
    return frame(1, 4, stream, b"".join(b"\x00" + text(name) + text(value) for name, value in fields.items()))


def windows_of(peer):
    """What a server lets its peer send: on each stream, and on the connection."""
    stream, connection, buffer = 65_535, 65_535, b""
    try:
        while True:
            piece = peer.recv(4_096)
            if not piece:
                break
            buffer += piece
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                length, kind, flags = int.from_bytes(buffer[:3], "big"), buffer[3], buffer[4]
                body, buffer = buffer[9 : 9 + length], buffer[9 + length :]
                if kind == 4 and not flags & 1:
                    for at in range(0, length, 6):
                        if body[at : at + 2] == b"\x00\x04":
                            stream = int.from_bytes(body[at + 2 : at + 6], "big")
                elif kind == 8:
                    connection += int.from_bytes(body, "big")
    except OSError:
        # It has said all that it says unasked.
        pass
    return stream, connection


def left_open(method, body, ends, window):
    """Calls on many connections of HTTP/2, as much of each as the server's windows take, and no answer is read.

    `ends`: the request is whole. `window`: what the server may send of each answer.
    """

    def attack(address, until):
        host, port = address.rsplit(":", 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (STRANGERS + 256,) * 2)
        settings = frame(4, 0, 0, b"\x00\x04" + window.to_bytes(4, "big"))
        peers, begun, sent = [], 0, 0
        while time.monotonic() < until:
            peer = socket.create_connection((host, int(port)))
            peers.append(peer)
            try:
                peer.settimeout(0.02)
                peer.sendall(PREFACE + settings)
                of_stream, of_connection = windows_of(peer)
                peer.settimeout(0.2)
                for stream in range(1, 201, 2):
                    peer.sendall(call_headers(stream, method))
                    begun += 1
                    most = min(len(body), of_stream, of_connection)
                    for at in range(0, most, 16_000):
                        piece = body[at : min(at + 16_000, most)]
                        last = at + 16_000 >= len(body)
                        peer.sendall(frame(0, int(ends and last), stream, piece))
                    of_connection -= most
                    sent += most
            except OSError:
                # The server reads no more, or has closed.
                pass
            while len(peers) > 2_000:
                peers.pop(0).close()
        return f"{begun}/{sent >> 20}M"

    return attack


def message(body):
    return b"\x00" + len(body).to_bytes(4, "big") + body


def empty_artifacts(caller, state, thread):
    """As many artifacts without a byte as eight megabytes hold."""
    if "method" not in state:
        channel = grpc.insecure_channel(caller_address, options=[("grpc.use_local_subchannel_pool", 1)])
        state["method"] = channel.unary_unary("/evidenceos.v2.EvidenceOS/CommitArtifacts")
    state["method"](b"\x0a\x20" + unknown(caller) + b"\x12\x00" * 4_000_000, metadata=caller.metadata, timeout=60)


def http(method, path, body=b"", token=ATTACKER):
    """Requests of HTTP/1.1 on kept connections."""

    def attack(address, until):
        done = itertools.count()

        def go():
            connection = None
            while time.monotonic() < until:
                try:
                    connection = connection or HTTPConnection(address, timeout=30)
                    number = next(done)
                    headers = {"authorization": f"Bearer {token}", "x-request-id": f"{os.getpid()}-{number}"}
                    connection.request(method, path, body, headers)
                    connection.getresponse().read()
                except (OSError, HTTPException):
                    connection = None

        threads = [threading.Thread(target=go, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()) + 5)
        return next(done)

    attack.on_http = True
    return attack


TOOL_CALL = b'{"toolName":"exec","params":{"command":"ls","text":"%s"},"sessionId":"s-1"}'
ATTACKS = {
    "silent strangers": strangers(b""),
    "half a preface": strangers(PREFACE[:12]),
    "HTTP/2 without a call": strangers(PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    "large commits, unknown claims": repeated(large_for_unknown),
    "large commits, id last": repeated(large_with_late_id),
    "large commits, refused modules": repeated(large_refused),
    "large commits again and again": repeated(large_again),
    "modules that compile long": repeated(compiles),
    "runs of all fuel, fast lane": repeated(fast_runs),
    "runs of all fuel, heavy lane": repeated(heavy_runs),
    "whole claims": repeated(claims),
    "claims created": repeated(creates),
    "executes of unknown claims": repeated(executes),
    "pages of entries": repeated(entries),
    "small calls": repeated(info),
    "250 KB in small calls": repeated(large_unknown_fields),
    "wrong tokens": repeated(wrong_tokens),
    "health without a name": repeated(health),
    "watches": watches,
    "artifacts without a byte": repeated(empty_artifacts),
    "unfinished small calls": left_open("GetServerInfo", message(bytes(250_000))[:-1], False, 65_535),
    "unfinished large calls": left_open("CommitArtifacts", message(bytes(4 << 20))[:-1], False, 65_535),
    "answers that nobody reads": left_open("ListEntries", message(b"\x10\x80\x02"), True, 0),
    "HTTP probes": http("GET", "/livez"),
    "tool calls": http("POST", "/v1/preflight_tool_call", TOOL_CALL % b""),
    "large tool calls": http("POST", "/v1/preflight_tool_call", TOOL_CALL % (b"x" * 60_000)),
    "bodies beyond any bound": http("POST", "/v1/preflight_tool_call", b"x" * (1 << 20)),
    "HTTP with a wrong token": http("GET", "/v1/decisions/1", token="not-a-token-00000001"),
    "silent HTTP strangers": strangers(b"GET / HTTP/1.1\r\n"),
}
ATTACKS["silent HTTP strangers"].on_http = True
caller_address = None


# --- the measurement -----------------------------------------------------------------------------


def free_port():
    """The daemon does not say where it serves HTTP."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


class Daemon:
    """A daemon with two holdouts and three callers who have tokens."""

    def __init__(self, program, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.http_address = f"127.0.0.1:{free_port()}"
        self.write("agents", f"{HONEST},{ATTACKER}")
        digest = hashlib.sha256(OPERATOR.encode()).hexdigest()
        self.write("policy.toml", f'[[rule]]\ntoken_sha256 = "{digest}"\nroles = ["operator"]\n')
        command = [program]
        if Path(program).name == "evidenceos":
            # The daemon is the same program under its other name.
            link = self.directory / "evidenceos-daemon"
            link.symlink_to(Path(program).resolve())
            command = [str(link)]
        command += ["--data-dir", "data", "--listen", "127.0.0.1:0", "--preflight-listen", self.http_address]
        command += ["--metrics-listen", "off", "--agent-tokens-file", "agents", "--auth-policy", "policy.toml"]
        command += ["--probe-claims", "off", "--default-credit-limit", "1000000000000", "--log", "error"]
        with open(self.directory / "out", "w") as out, open(self.directory / "err", "w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdout=out,
                stderr=err,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
            )
        self.address = self.wait_for_address()

    def write(self, name, content):
        path = self.directory / name
        path.write_text(content)
        path.chmod(0o600)

    def wait_for_address(self):
        for _ in range(300):
            out = (self.directory / "out").read_text()
            found = re.search(r"127\.0\.0\.1:\d+", out)
            if found and "Log key" in out:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        sys.exit(f"the daemon did not start: {(self.directory / 'err').read_text()}")

    def resident_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1_024

    def processor_s(self):
        """User and system time of the daemon without its children."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


def p95_ms(samples):
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * 95 // 100) - 1)] * 1e3 if ordered else float("nan")


def timed(samples, work):
    began = time.monotonic()
    work()
    samples.append(time.monotonic() - began)


def honest(daemon, until, seeds):
    """p95 of Health and of a whole claim, and the most memory meanwhile."""
    caller = Caller(daemon.address, HONEST, "honest")
    healths, lives, peak, failed = [], [], 0.0, 0
    while time.monotonic() < until:
        for _ in range(4):
            timed(healths, lambda: caller.stub.Health(pb.HealthRequest(), timeout=60))
        predictions = random.Random(next(seeds)).choices((0, 1), k=ITEMS)
        try:
            timed(lives, lambda: caller.life("ours", judged(predictions)))
        except grpc.RpcError as error:
            failed += 1
            if failed == 1:
                print("an honest claim failed:", error.code(), error.details(), file=sys.stderr)
        peak = max(peak, daemon.resident_mib())
        time.sleep(0.01)
    return p95_ms(healths), p95_ms(lives), len(lives), peak, failed


def idle_after(daemon):
    time.sleep(UNTIL_IDLE_S)
    return daemon.resident_mib()


def row(name, health_ms, life_ms, lives, peak, failed, sent="", busy=""):
    words = f", {failed} FAILED" if failed else ""
    print(f"{name:32} {health_ms:8.1f} {life_ms:8.1f} {lives:6} {peak:8.0f} {sent:>12} {busy:>6}{words}", flush=True)


def measure(program, directory, names, seconds):
    daemon = Daemon(program, directory)
    try:
        operator = Caller(daemon.address, OPERATOR, "operator")
        for holdout in ("ours", "theirs"):
            put_holdout(operator, holdout)
        seeds = itertools.count(1 << 32)
        print(f"{'attack':32} {'Health':>8} {'claim':>8} {'claims':>6} {'RSS MiB':>8} {'sent':>12} {'busy':>6}")
        honest(daemon, time.monotonic() + 3, seeds)
        idle = honest(daemon, time.monotonic() + seconds, seeds)
        row("nothing", *idle)
        limits = [5 * idle[0] + 20, 5 * idle[1] + 20]
        print(f"{'(limits)':32} {limits[0]:8.1f} {limits[1]:8.1f} {'':6} {512:8}")
        missed = []
        for name in names:
            address = daemon.http_address if hasattr(ATTACKS[name], "on_http") else daemon.address
            attacker = subprocess.Popen(
                [sys.executable, __file__, "--attack", name, address, str(seconds + 2)],
                stdout=subprocess.PIPE,
                text=True,
            )
            time.sleep(1)
            used = daemon.processor_s()
            found = honest(daemon, time.monotonic() + seconds, seeds)
            used = (daemon.processor_s() - used) / seconds
            sent = attacker.communicate(timeout=600)[0].strip()
            row(name, *found, sent, f"{used:.2f}")
            if found[0] > limits[0] or found[1] > limits[1] or found[3] > 512 or found[4]:
                missed.append(name)
        before = daemon.resident_mib()
        print(f"resident now {before:.0f} MiB, {UNTIL_IDLE_S} s later {idle_after(daemon):.0f} MiB, first {idle[3]:.0f} MiB")
        print("missed:", ", ".join(missed) or "none")
        return bool(missed)
    finally:
        daemon.stop()


def existence(program, directory, rounds):
    """How long calls take for another's claim and for one that does not exist, asked in turn."""
    calls = {
        "GetClaim": lambda claim: pb.GetClaimRequest(claim_id=claim),
        "GetCapsule": lambda claim: pb.GetCapsuleRequest(claim_id=claim),
        "FetchCapsule": lambda claim: pb.FetchCapsuleRequest(claim_id=claim),
        "SealClaim": lambda claim: pb.SealClaimRequest(claim_id=claim),
        "ExecuteClaimV2": lambda claim: pb.ExecuteClaimV2Request(claim_id=claim),
        "RevokeClaim": lambda claim: pb.RevokeClaimRequest(claim_id=claim),
        "CommitArtifacts": lambda claim: pb.CommitArtifactsRequest(claim_id=claim, wasm_module=judged([0] * ITEMS)),
    }
    daemon = Daemon(program, directory)
    try:
        put_holdout(Caller(daemon.address, OPERATOR, "operator"), "ours")
        owner, caller = Caller(daemon.address, HONEST, "owner"), Caller(daemon.address, ATTACKER, "asks")
        theirs = []
        for seed in range(64):
            # As large as claims are: the row of one that was committed has its artifacts.
            theirs.append(owner.claim("ours"))
            wasm = judged(random.Random(seed).choices((0, 1), k=ITEMS))
            names = [hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(127)]
            artifacts = [pb.Artifact(artifact_hash=name, kind="data") for name in names]
            artifacts.append(pb.Artifact(artifact_hash=hashlib.sha256(wasm).digest(), kind="wasm"))
            owner.call(
                "CommitArtifacts", pb.CommitArtifactsRequest(claim_id=theirs[-1], artifacts=artifacts, wasm_module=wasm)
            )
        heads = ("call", "theirs", "none", "theirs", "none")
        print("{:18} {:>10} {:>10} {:>10} {:>10}   us: p50, p95; the answers".format(*heads))
        differ = False
        for method, request in calls.items():
            times, answers = ([], []), (set(), set())
            for number in range(rounds):
                asked = [(0, theirs[number % len(theirs)]), (1, unknown(caller))]
                for which, claim in asked[:: 1 - 2 * (number % 2)]:
                    began = time.monotonic()
                    try:
                        caller.call(method, request(claim))
                        answers[which].add("OK")
                    except grpc.RpcError as error:
                        said = error.details().replace(claim.hex(), "ID")
                        answers[which].add(f"{error.code().name}: {said}")
                    times[which].append(time.monotonic() - began)
            middles = [sorted(found)[len(found) // 2] * 1e6 for found in times]
            ends = [p95_ms(found) * 1e3 for found in times]
            same = "the same" if answers[0] == answers[1] else f"DIFFER: {answers}"
            differ |= answers[0] != answers[1]
            figures = f"{middles[0]:10.0f} {middles[1]:10.0f} {ends[0]:10.0f} {ends[1]:10.0f}"
            print(f"{method:18} {figures}   {same}", flush=True)
        return differ
    finally:
        daemon.stop()


def shapes(program, directory, files):
    """How far the daemon's memory moves while each of these modules is committed."""
    daemon = Daemon(program, directory)
    try:
        operator = Caller(daemon.address, OPERATOR, "operator")
        put_holdout(operator, "theirs")
        caller = Caller(daemon.address, ATTACKER, "shapes")
        caller.commit(caller.claim("theirs"), judged([0] * ITEMS))
        print(f"{'module':60} {'MiB':>6} {'bytes':>9}")
        for file in files:
            wasm = Path(file).read_bytes()
            claim = caller.claim("theirs")
            time.sleep(1)
            before, peak = daemon.resident_mib(), 0.0
            end = "admitted"

            def commit():
                nonlocal end
                try:
                    caller.commit(claim, wasm)
                except grpc.RpcError as error:
                    end = error.details()[:80]

            thread = threading.Thread(target=commit)
            thread.start()
            while thread.is_alive():
                peak = max(peak, daemon.resident_mib())
                time.sleep(0.0005)
            print(f"{Path(file).stem:60} {max(0.0, peak - before):6.1f} {len(wasm):9}  {end}", flush=True)
        print(f"resident at the end {daemon.resident_mib():.0f} MiB")
    finally:
        daemon.stop()


def main():
    if sys.argv[1:2] == ["--attack"]:
        global caller_address
        name, caller_address, seconds = sys.argv[2:]
        print(ATTACKS[name](caller_address, time.monotonic() + float(seconds)), flush=True)
        # Threads whose call has not ended are of no more use.
        os._exit(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", metavar="BIN")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--report", action="store_true", help="exit with 0 even if the honest caller waited too long")
    parser.add_argument("--shape", action="append", default=[], metavar="FILE")
    parser.add_argument("--existence", type=int, metavar="ROUNDS", help="only time what is another's, so many times")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    given = parser.parse_intermixed_args()
    for name in given.attacks:
        if name not in ATTACKS:
            parser.error(f"no attack is called {name!r}; there are: {', '.join(ATTACKS)}")
    if given.shape:
        shapes(given.program, given.directory, given.shape)
        return 0
    if given.existence:
        return int(existence(given.program, given.directory, given.existence))
    missed = measure(given.program, given.directory, given.attacks or list(ATTACKS), given.seconds)
    return int(missed and not given.report)


if __name__ == "__main__":
    sys.exit(main())
