"""The treasury's process: a desk for each backend, the listener for callbacks, the ledger's line.

It never mints: it tells the ledger what it sees. Killed at any moment it loses nothing: what it
made is found again by the intent's id, what came is found by the first look at open intents.
"""

import hashlib
import hmac
import logging
import os
import socket
import sys
import time

from gristmill.ledger.payments.btcpay import BtcpayBackend
from gristmill.ledger.payments.callbacks import Callbacks
from gristmill.ledger.payments.desk import Desk
from gristmill.ledger.payments.http import Server, read_secret
from gristmill.ledger.payments.interface import PaymentBackend
from gristmill.ledger.payments.line import Line
from gristmill.ledger.payments.lnd import LndBackend
from gristmill.ledger.payments.manual import Confirmations, ManualBackend
from gristmill.ledger.payments.settings import Settings, Sold
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.payments import AskIntents, IntentView, Offer, OffersAnswer, Paid, Sell
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    own_folder,
    stopping_socket,
)

log = logging.getLogger("gristmill.treasury")

SELL_S = 5.0  #: a ledger that was started again is told within this
START_S = 60.0
KEY = "treasury.key"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Treasury:
    """One treasury.

    Raises:
        RemoteError: a setting, a secret's file or the address of the listener is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._lock = own_folder(settings.state, "treasury")
        key = load_key(settings.state / KEY)
        seed = key.encode()
        self._secret = hmac.new(seed, b"gristmill treasury", hashlib.sha256).digest()
        self._desks: dict[str, Desk] = {}
        self._line = Line(settings.ledger, key, settings.ledger_key, self._on_changed)
        backends = self._backends(settings)
        self._offers = [_offer(backend, sold) for backend, sold in backends]
        for backend, _ in backends:
            self._desks[backend.name] = Desk(
                backend, self._line, settings.reconcile_s, settings.sweep_s, _now_ms
            )
        self._callbacks: Callbacks | None = None
        if settings.listen:
            self._callbacks = Callbacks(settings.listen, self._desks, settings.look_up_s)
        self._is_selling = True

    def _backends(self, settings: Settings) -> list[tuple[PaymentBackend, Sold]]:
        found: list[tuple[PaymentBackend, Sold]] = []
        if lnd := settings.lnd:
            headers = {
                "Grpc-Metadata-macaroon": read_secret(lnd.macaroon_file, "LND's macaroon").hex()
            }
            server = Server(lnd.url, headers, lnd.timeout / 1000, lnd.authority)
            found.append((LndBackend(server, self._secret, _callback_secret(lnd)), lnd))
        if btcpay := settings.btcpay:
            key = read_secret(btcpay.key_file, "BTCPay's key").decode("ascii", "replace").strip()
            headers = {"Authorization": f"token {key}"}
            server = Server(btcpay.url, headers, btcpay.timeout / 1000, btcpay.authority)
            secret = read_secret(btcpay.webhook_secret_file, "the webhook's secret").strip()
            found.append((BtcpayBackend(server, btcpay.store, btcpay.methods, secret), btcpay))
        if manual := settings.manual:
            backend = ManualBackend(
                manual.unit,
                manual.instructions,
                self._confirmed,
                _now_ms,
                _callback_secret(manual),
            )
            found.append((backend, manual))
        return found

    def _confirmed(self, intent: str) -> Confirmations | None:
        """What the ledger has of an intent that people confirm."""
        try:
            found = self._line.ask(AskIntents(0, "", intent, "manual"), list[IntentView])
        except RemoteError as error:
            if error.code == "UNKNOWN_INTENT":
                return None
            raise
        paid = [Paid(one.id, one.amount) for one in found[0].payments]
        return Confirmations(found[0].due, found[0].expires_ms, paid)

    def _on_changed(self, backend: str, intent: str) -> None:
        desk = self._desks.get(backend)
        if desk is not None:
            desk.wake(intent)

    def _sell(self, patience_s: float) -> None:
        try:
            self._line.ask(Sell(0, self._offers), OffersAnswer, patience_s)
        except RemoteError as error:
            if self._is_selling:
                log.error("nothing can be sold now: %s", error.message)
            self._is_selling = False
            if error.code != "LEDGER_DOWN":
                raise
        else:
            if not self._is_selling:
                log.info("the ledger answers again")
            self._is_selling = True

    def run(self, stop: socket.socket, ready_fd: int | None) -> None:
        """Serve until ``stop`` is readable.

        Raises:
            RemoteError: the ledger refuses what is sold.
        """
        self._sell(START_S)
        for desk in self._desks.values():
            desk.start()
        told = self._callbacks.address if self._callbacks else "without callbacks"
        announce_ready("treasury", f"{', '.join(self._desks)} {told}", ready_fd)
        stop.settimeout(SELL_S)
        while True:
            try:
                stop.recv(1)
                return
            except TimeoutError:
                self._sell(SELL_S)

    def close(self) -> None:
        """End every thread that is not waiting for a backend; those end with the process."""
        if self._callbacks:
            self._callbacks.close()
        for desk in self._desks.values():
            desk.stop()
        self._line.close()
        os.close(self._lock)


def _callback_secret(sold: Sold) -> bytes:
    """Without a file nobody can sign a callback."""
    if sold.callback_secret_file is None:
        return os.urandom(32)
    return read_secret(sold.callback_secret_file, "the callbacks' secret").strip()


def _offer(backend: PaymentBackend, sold: Sold) -> Offer:
    return Offer(
        backend.name,
        backend.unit,
        sold.ucredits_per_unit,
        sold.fee_ppm,
        sold.amount_min,
        sold.amount_max,
        sold.expiry,
    )


def serve(settings: Settings) -> int:
    """The process's life; an exit code of wire/errors.py."""
    os.umask(0o077)
    begin_logging("%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = stopping_socket()
    if settings.is_dying_with_parent:
        die_with_parent()
    try:
        treasury = Treasury(settings)
    except RemoteError as error:
        return ended_by(error)
    except OSError as error:
        print(f"the treasury cannot use {settings.state}: {error}", file=sys.stderr)
        return EXIT_FAILED
    try:
        treasury.run(stop, settings.ready_fd)
    except RemoteError as error:
        return ended_by(error)
    finally:
        treasury.close()
    return EXIT_OK
