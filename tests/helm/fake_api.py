"""As much of a Kubernetes API as Helm's `lookup` asks for: the Secrets of namespace lab.

Prints its port, and serves until it is killed.
"""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRETS = {
    "evidenceos-mtls": ["server.crt", "server.key", "ca.crt"],
    "evidenceos-signing-key": ["0" * 64 + ".key"],
    "evidenceos-empty": [],
}
RESOURCES = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": "v1",
    "resources": [
        {"name": "secrets", "singularName": "secret", "kind": "Secret", "namespaced": True, "verbs": ["get"]}
    ],
}
PREFIX = "/api/v1/namespaces/lab/secrets/"


class Api(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        name = path.removeprefix(PREFIX)
        if path == "/api/v1":
            self.reply(200, RESOURCES)
        elif path.startswith(PREFIX) and name in SECRETS:
            data = {key: "" for key in SECRETS[name]}
            metadata = {"name": name, "namespace": "lab"}
            self.reply(200, {"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data})
        else:
            self.reply(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

    def reply(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Api)
print(server.server_port, flush=True)
server.serve_forever()
