#!/usr/bin/env python3
"""Write an image as `ctr images import` takes it: one layer of a program and the libraries that it needs.

usage: image.py NAME OUT.tar PROGRAM PATH [CONFIG]

PROGRAM is put at PATH, with links beside it (`evidenceos-daemon`) and what `ldd` says that it needs; CONFIG is
JSON that is merged into the image's configuration, as {"Env": ["A=b"]}. Users are root and nonroot (65532).
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

USERS = "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"


def libraries(program: str) -> list[str]:
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(?:=> |^\s*)(/\S+) \(", told, re.MULTILINE)


def file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def layer(program: str, path: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        file(tar, path, Path(program).read_bytes(), 0o755)
        link = tarfile.TarInfo(path.lstrip("/") + "-daemon")
        link.type, link.linkname = tarfile.SYMTYPE, Path(path).name
        tar.addfile(link)
        for library in libraries(program):
            file(tar, library, Path(library).read_bytes(), 0o755)
        file(tar, "etc/passwd", USERS.encode())
        file(tar, "etc/nsswitch.conf", b"hosts: files dns\n")
        for directory, owner in (("tmp", 0), ("data", 65532), ("anchor", 65532)):
            info = tarfile.TarInfo(directory)
            info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o700 if owner else 0o1777, owner, owner
            tar.addfile(info)
    return out.getvalue()


def main(name: str, out: str, program: str, path: str, config: str = "{}") -> None:
    content = layer(program, path)
    description = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [path], "Env": ["PATH=/usr/local/bin"]} | json.loads(config),
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(out, "w") as tar:
        file(tar, "layer.tar", content)
        file(tar, "config.json", json.dumps(description).encode())
        file(tar, "manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
