"""The store's process: the HTTP server, and a thread that frees what nobody keeps."""

import logging
import os
import pathlib
import socket
import sys
import threading
import time

from nacl.signing import VerifyKey

from gristmill.store import tls
from gristmill.store.address import UNIX, listen
from gristmill.store.client import StoreClient
from gristmill.store.interface import BlobStore
from gristmill.store.local import LocalStore
from gristmill.store.server import StoreServer
from gristmill.store.settings import Settings
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.keys import STORE_KEY, load_key
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    stopping_socket,
)
from gristmill.wire.supervision import Supervisor, supervisor_of
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.store")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def open_store(settings: Settings) -> BlobStore:
    """The back-end that the settings ask for.

    Raises:
        RemoteError: it cannot be used; see the back-ends.
    """
    if not settings.s3:
        return LocalStore(settings.state, settings.size_max, _now_ms)
    try:
        from gristmill.store import bucket
        from gristmill.store.s3 import S3Store
    except ModuleNotFoundError as error:
        raise RemoteError(
            "INVALID_SPEC",
            f"--s3 needs the package {error.name}, which is not installed",
            "pip install 'gristmill[s3]'",
        ) from None
    bucket.check_endpoint(settings.s3_endpoint)
    credentials = bucket.read_credentials(settings.s3_credentials)
    objects = bucket.Bucket(settings.s3, settings.s3_endpoint, settings.s3_region, credentials)
    return S3Store(objects, settings.state, settings.size_max, _now_ms)


def collect_once(settings: Settings) -> int:
    """``--collect``: free, or only say, what nobody keeps; an exit code."""
    store = open_store(settings)
    try:
        done = store.collect(_now_ms(), settings.grace_ms, settings.is_dry_run)
    finally:
        store.close()
    verb = "would free" if settings.is_dry_run else "freed"
    for digest in done.digests:
        print(digest)
    print(f"{verb} {done.blobs} blobs, {format_bytes(done.freed_bytes)}", file=sys.stderr)
    return EXIT_OK


def _collect_for_ever(store: BlobStore, settings: Settings, stop: threading.Event) -> None:
    while not stop.wait(settings.collect_every_ms / 1000):
        try:
            done = store.collect(_now_ms(), settings.grace_ms)
        except Exception:  # the edge of a thread: the store serves on
            log.exception("collection failed")
            continue
        if done.blobs:
            log.info("freed %d blobs, %s", done.blobs, format_bytes(done.freed_bytes))


def _wait_for_the_end(ending: socket.socket, address: str, supervisor: Supervisor) -> None:
    """Until ``ending`` is readable; meanwhile what we answer to ourselves feeds the watchdog."""
    if not supervisor.watchdog_s:
        ending.recv(1)
        return
    ending.settimeout(supervisor.feed_every_s)
    with StoreClient(address, timeout_s=supervisor.watchdog_s) as client:
        while True:
            try:
                ending.recv(1)
                return
            except TimeoutError:
                pass
            try:
                client.health()
            except RemoteError as error:
                log.error("the store does not answer itself: %s", error.message)
            else:
                supervisor.feed()


def _serve(settings: Settings, ending: socket.socket, supervisor: Supervisor) -> None:
    stop = threading.Event()
    store = open_store(settings)
    try:
        listener, address = listen(settings.listen)
        secured = None
        if address.startswith("https://"):
            own = load_key(settings.state / STORE_KEY)
            secured = tls.server_context(own)
            address = f"{address}#{own.verify_key.encode().hex()}"
        server = StoreServer(
            listener,
            store,
            VerifyKey(bytes.fromhex(settings.key)),
            _now_ms,
            settings.idle_s,
            settings.connections_max,
            secured,
            VerifyKey(bytes.fromhex(settings.publisher)) if settings.publisher else None,
        )
        threads = [threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)]
        if settings.collect_every_ms:
            arguments = (store, settings, stop)
            threads.append(threading.Thread(target=_collect_for_ever, args=arguments, daemon=True))
        for thread in threads:
            thread.start()
        usage = store.usage()
        log.info("%d blobs, %s", usage.blobs, format_bytes(usage.used_bytes))
        announce_ready("store", address, settings.ready_fd, supervisor)
        _wait_for_the_end(ending, address, supervisor)
        supervisor.stopping("ends")
        stop.set()
        if address.startswith(UNIX):
            pathlib.Path(address.removeprefix(UNIX)).unlink(missing_ok=True)
        server.is_ending = True
        server.shutdown()
        log.info("ends: %s", dict(server.counts))
    finally:
        # Transfers under way end with the process: half a put leaves nothing, by construction.
        store.close()


def serve(settings: Settings) -> int:
    """The process's life; an exit code of wire/errors.py."""
    os.umask(0o077)
    begin_logging("%(asctime)s %(name)s %(levelname)s %(message)s")
    if settings.is_dying_with_parent:
        die_with_parent()
    try:
        if settings.is_printing_key:
            print(load_key(settings.state / STORE_KEY).verify_key.encode().hex())
            return EXIT_OK
        if settings.is_collecting:
            return collect_once(settings)
        _serve(settings, stopping_socket(), supervisor_of(os.environ))
    except RemoteError as error:
        return ended_by(error)
    except OSError as error:
        print(f"the store cannot use {settings.state}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
