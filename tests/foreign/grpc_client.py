"""gRPC for Python against daemons with certificates, a token and signatures."""

import hashlib
import hmac
import sys
import time

import grpc
from evidenceos.v2 import evidenceos_pb2 as pb
from evidenceos.v2 import evidenceos_pb2_grpc as stubs

STRICT, RELAXED, TOKENS, SIGNED = sys.argv[1:]
SERVICE = "/evidenceos.v2.EvidenceOS/"
DEADLINE = 10


def read(path):
    with open(path, "rb") as file:
        return file.read()


def channel(address, client=None):
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read("ca.crt"),
        private_key=read(f"{client}.key") if client else None,
        certificate_chain=read(f"{client}.crt") if client else None,
    )
    return stubs.EvidenceOSStub(grpc.secure_channel(address, credentials))


def passed(what):
    print(f"  ok  {what}")


def refused(code, what, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, (what, error.code(), error.details())
        passed(what)
        return
    raise AssertionError(f"{what}: was served")


def principal(kind, name):
    return "mtls:" + hashlib.sha256(kind.encode() + b"\0" + name.encode()).hexdigest()


def info(stub, metadata=()):
    return stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata, timeout=DEADLINE)


def certificates():
    operator = info(channel(STRICT, "operator"))
    assert operator.principal == principal("uri", "spiffe://foreign/operator"), operator.principal
    assert operator.feature_flags.mtls_enabled and not operator.development
    passed("a certificate is served under its URI")
    spoofed = info(
        channel(STRICT, "submitter"),
        [("x-client-cert-san", "operator"), ("x-client-cert-fp", "00"), ("x-evidenceos-auth-role", "operator")],
    )
    assert spoofed.principal == principal("uri", "spiffe://foreign/submitter")
    refused(
        grpc.StatusCode.PERMISSION_DENIED,
        "a header does not make an operator",
        lambda: channel(STRICT, "submitter").RetireHoldout(
            pb.RetireHoldoutRequest(holdout="x"),
            metadata=[("x-client-cert-san", "operator")],
            timeout=DEADLINE,
        ),
    )
    for client in (None, "expired", "serverauth", "stranger"):
        refused(
            grpc.StatusCode.UNAVAILABLE,
            f"certificate {client}: the first call fails",
            lambda: info(channel(STRICT, client)),
        )
    refused(
        grpc.StatusCode.UNAUTHENTICATED,
        "an optional certificate is still a credential",
        lambda: info(channel(RELAXED)),
    )
    assert channel(RELAXED).Health(pb.HealthRequest(), timeout=DEADLINE).status == "SERVING"
    passed("health needs none")


def tokens():
    token = read("token").decode().strip()
    stub = channel(TOKENS)
    served = info(stub, [("authorization", f"Bearer {token}")])
    assert served.principal == "bearer:" + hashlib.sha256(token.encode()).hexdigest()
    lower = info(stub, [("authorization", f"bearer {token}")])
    assert lower.principal == served.principal
    passed("a token is served, whatever the case of its scheme")
    for bad in ([], [("authorization", "Bearer wrong")], [("authorization", f"Basic {token}")]):
        refused(grpc.StatusCode.UNAUTHENTICATED, f"{bad} is not", lambda: info(stub, bad))


def signature(secret, request_id, path, timestamp):
    material = f"{request_id}:{path}:{timestamp}".encode()
    return "sha256=" + hmac.new(secret, material, hashlib.sha256).hexdigest()


def signed(secret, request_id, path, timestamp):
    return [
        ("x-request-id", request_id),
        ("x-evidenceos-timestamp", timestamp),
        ("x-evidenceos-signature", signature(secret, request_id, path, timestamp)),
    ]


def signatures():
    secret = read("secret").strip()
    now = str(int(time.time()))
    stub = channel(SIGNED)
    path = SERVICE + "GetServerInfo"
    first = info(stub, signed(secret, "discos-1", path, now))
    again = info(stub, signed(secret, "discos-2", path, now))
    expected = "hmac:" + hashlib.sha256(b"default").hexdigest()
    assert first.principal == again.principal == expected, first.principal
    passed("a signature is served, and the caller is the same from call to call")
    old = str(int(time.time()) - 301)
    bad = {
        "another path": signed(secret, "discos-3", SERVICE + "Health", now),
        "the path /": signed(secret, "discos-3", "/", now),
        "another secret": signed(b"other", "discos-3", path, now),
        "an old timestamp": signed(secret, "discos-3", path, old),
        "another id": [("x-request-id", "discos-4")] + signed(secret, "discos-3", path, now)[1:],
        "no signature": [("x-request-id", "discos-3")],
    }
    for what, metadata in bad.items():
        refused(grpc.StatusCode.UNAUTHENTICATED, f"{what} is refused", lambda: info(stub, metadata))


certificates()
tokens()
signatures()
