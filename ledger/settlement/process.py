"""The settlement's process: settings to parts, turns until it is told to stop."""

import contextlib
import logging
import os
import queue
import select
import socket
import sys
import time

from gristmill.contracts import deployment, keys
from gristmill.contracts.abi import parse_address
from gristmill.contracts.rpc import Chain
from gristmill.ledger.payments.line import Line
from gristmill.ledger.settlement.books import FolderLists, LedgerBooks, StoreLists
from gristmill.ledger.settlement.core import chain_log, epochs, queue_records
from gristmill.ledger.settlement.evm import EvmNode, EvmSigner
from gristmill.ledger.settlement.ports import Lists
from gristmill.ledger.settlement.rows import FILE, Rows
from gristmill.ledger.settlement.settings import GWEI, Settings
from gristmill.ledger.settlement.settlement import Pace, Place, Settlement
from gristmill.wire.chain import ShowVoucher, pool_of
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    stopping_socket,
)

log = logging.getLogger("gristmill.settlement")

KEY = "settlement.key"  #: what it speaks to the ledger as; no money is under it
START_PAUSE_S = 2.0
VOUCHERS_MAX = 1_000  #: that wait for an answer
VOUCHERS_AT_ONCE = 20  #: each takes some 20 ms to check; a turn is not kept waiting longer


class Service:
    """One settlement with its parts.

    Raises:
        RemoteError: a setting, the deployment, the keystore or the file is wrong, or the chain is
            another.
    """

    def __init__(self, settings: Settings, stop: socket.socket) -> None:
        self._settings = settings
        self._said: dict[str, str] = {}
        placed = deployment.read(settings.deployment)
        self._rows = Rows(settings.state / FILE)
        signer = _signer(settings)
        self._vouchers: queue.Queue[ShowVoucher] = queue.Queue(VOUCHERS_MAX)
        self._bell, self._woken = socket.socketpair()
        self._bell.setblocking(False)
        self._line = Line(
            settings.ledger,
            load_key(settings.state / KEY),
            settings.ledger_key,
            shown=self._on_shown,
        )
        chains = [_reach(url, placed, settings.timeout / 1000, stop) for url in settings.rpcs]
        rental, pool = placed.at("ComputeRental"), placed.at("WorkPool")
        first = min(placed.contracts[name].block for name in ("ComputeRental", "WorkPool"))
        place = Place(placed.chain_id, rental, pool, settings.start or first)
        nodes = [
            EvmNode(chain, rental, pool, placed.token_contract(), signer.address)
            for chain in chains
        ]
        self.settlement = Settlement(
            self._rows,
            nodes,
            EvmSigner(signer, placed.chain_id),
            LedgerBooks(self._line, pool_of(placed.chain_id, pool.address)),
            _lists(settings),
            place,
            chain_log.Limits(
                settings.depth, settings.range_blocks, is_witnessed=len(settings.rpcs) > 1
            ),
            queue_records.Limits(
                settings.in_flight,
                settings.pending_max,
                settings.bump_blocks,
                settings.fee_cap_gwei * GWEI,
                settings.fee_day_gwei * GWEI,
            ),
            epochs.Settings(
                int(placed.contracts["ComputeRental"].arguments["grace"]),
                settings.hurry // 1000,
                settings.redeem_min,
                int(placed.contracts["WorkPool"].arguments["capPerEpoch"]),
                signer.address,
            ),
            Pace(settings.epoch / 1000, settings.reconcile / 1000),
            settings.state,
            _now_ms,
        )
        if settings.is_replaying:
            self.settlement.replay()
        self.told = f"0x{signer.address.hex()} on chain {placed.chain_id}"

    def _on_shown(self, voucher: ShowVoucher) -> None:
        """On the line's thread."""
        with contextlib.suppress(queue.Full):  # without an answer it is said again
            self._vouchers.put_nowait(voucher)
        with contextlib.suppress(BlockingIOError):  # it has been rung often enough
            self._bell.send(b"v")

    def run(self, stop: socket.socket) -> None:
        """Turn until ``stop`` is readable; vouchers are answered between turns."""
        announce_ready("settlement", self.told, self._settings.ready_fd)
        next_s = 0.0
        while True:
            pause_s = max(0.0, next_s - time.monotonic()) if self._vouchers.empty() else 0.0
            ready, _, _ = select.select([stop, self._woken], [], [], pause_s)
            if stop in ready:
                return
            if self._woken in ready:
                self._woken.recv(1 << 16)
            for _ in range(VOUCHERS_AT_ONCE):
                if self._vouchers.empty():
                    break
                self._line.tell(self.settlement.show_voucher(self._vouchers.get()))
            if time.monotonic() >= next_s:
                self.settlement.turn()
                self._say()
                next_s = time.monotonic() + self._settings.poll_s

    def _say(self) -> None:
        """What became of each transaction that is not final: a line when its state is another."""
        said = {}
        for line in self.settlement.told():
            name, _, state = line.partition(": ")
            said[name] = state.partition(" (")[0]  # not for each block on it
            if self._said.get(name) != said[name]:
                log.info("%s", line)
        self._said = said

    def close(self) -> None:
        """End the line and close the file."""
        self._line.close()
        self._bell.close()
        self._woken.close()
        self._rows.close()


def _reach(url: str, placed: deployment.Deployment, timeout_s: float, stop: socket.socket) -> Chain:
    """One RPC that is of the right chain and has our contracts; waited for, told once.

    Raises:
        RemoteError: it is another chain, or has other contracts.
        SystemExit: it was told to stop meanwhile.
    """
    is_told = False
    while True:
        try:
            chain = Chain([url], placed.chain_id, timeout_s)
            deployment.check(placed, chain)
        except RemoteError as error:
            if error.code != "CHAIN_DOWN":
                raise
            if not is_told:
                log.error("the chain is waited for: %s", error.message)
            is_told = True
            if select.select([stop], [], [], START_PAUSE_S)[0]:
                raise SystemExit(EXIT_OK) from None
        else:
            return chain


def _signer(settings: Settings) -> keys.Signer:
    if settings.keystore is not None:
        password = keys.read_password(settings.password_file, None, "the keystore's password")
        return keys.open_keystore(settings.keystore, password)
    return keys.ExternalSigner(settings.signer, parse_address(settings.account, "account"))


def _lists(settings: Settings) -> Lists:
    folder = FolderLists(settings.state / "lists")
    if not settings.store:
        return folder
    key = load_key(settings.state / KEY)
    log.info("publishes lists in %s as %s", settings.store, key.verify_key.encode().hex())
    return StoreLists(folder, settings.store, key)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def serve(settings: Settings) -> int:
    """The process's life; an exit code of wire/errors.py."""
    os.umask(0o077)
    begin_logging("%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = stopping_socket()
    if settings.is_dying_with_parent:
        die_with_parent()
    try:
        service = Service(settings, stop)
    except RemoteError as error:
        return ended_by(error)
    except OSError as error:
        print(f"the settlement cannot use {settings.state}: {error}", file=sys.stderr)
        return EXIT_FAILED
    try:
        service.run(stop)
    except RemoteError as error:
        return ended_by(error)
    finally:
        service.close()
    return EXIT_OK
