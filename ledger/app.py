"""The ledger's process: a ROUTER socket in front of one book.

One thread. A turn takes every message that waits, applies all posts and fundings of the turn in one
transaction, and answers after its commit: while one group is being synced to disk, the next one
queues in the socket. Nothing is timed.
"""

import contextlib
import logging
import os
import pathlib
import socket
import sys
import time
from collections import Counter
from typing import Any

import apsw
import msgspec
import zmq
from nacl.signing import SigningKey

from gristmill.ledger import bills
from gristmill.ledger.book import Asked, Book
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core.chain_records import AnswerChain
from gristmill.ledger.core.intent_records import AnswerIntent, WakeTreasury
from gristmill.ledger.door import Door
from gristmill.ledger.engine import GoneError, PostponedError, RefusedError
from gristmill.ledger.epochs import Epochs
from gristmill.ledger.floods import Floods
from gristmill.ledger.purchases import Purchases, Question, wrong_text
from gristmill.ledger.rentals import OfChain, Rentals
from gristmill.ledger.settings import Settings
from gristmill.ledger.sqlite import SqliteBook
from gristmill.ledger.statements import Statements
from gristmill.ledger.watches import Watches
from gristmill.wire import chain, limits, payments
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.keys import LEDGER_KEY, load_key
from gristmill.wire.ledger import (
    Acked,
    AskBalance,
    AskReceipts,
    AskStatement,
    AskUsage,
    Fund,
    LedgerAnswer,
    LedgerRefused,
    Ping,
    Post,
    Transfer,
    Verdict,
    decode_to_ledger,
)
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    raise_descriptor_limit,
    stopping_socket,
)
from gristmill.wire.refusals import SECOND_MS, Refusals
from gristmill.wire.supervision import NOBODY, Supervisor, supervisor_of
from gristmill.wire.units import format_credits

log = logging.getLogger("gristmill.ledger")
_YES = msgspec.Raw(b"\xc0")
_CHECKED = payments.Message | chain.Message  #: whose texts go to the database as they are
LOOK_MS = 60_000  #: how often it is asked whether a broker was lost for good
REFUSED_CHARS_MAX = 4_000  #: of one refusal: what a peer asked may be much longer
ACKED_CHARS_MAX = 12 << 10  #: of verdicts in one message: at 4 bytes a character, 48 KiB of 64


class Ledger:
    """One ledger at one address.

    A ledger whose books are not in order is read-only: it answers questions, refuses posts with
    ``LEDGER_DOWN`` and the reason, and the broker keeps its outbox.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._floods = Floods()
        self._refusals = Refusals()
        self.read_only = ""
        self.book = open_book(settings)
        key = load_key(settings.state / LEDGER_KEY)
        self.book.public = key.verify_key.encode().hex()
        self.epochs = Epochs(self.book, key, settings.epoch_s * 1000)
        self._began_ms = self._looked_ms = _now_ms()
        self._context = zmq.Context()
        self._socket = self._listen(key)
        self._purchases = Purchases(self.book, key, self._send)
        self._rentals = Rentals(self.book, self._send)
        self._statements = Statements(self.book, self._open_incident)
        self._watches = Watches()

    def _listen(self, key: SigningKey) -> "zmq.Socket[bytes]":
        address = self.settings.listen
        if address.startswith("ipc://"):
            folder = pathlib.Path(address.removeprefix("ipc://")).parent
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, limits.ZMQ_FRAME_BYTES_MAX),
            (zmq.SNDHWM, 1_000),
            (zmq.RCVHWM, 1_000),
            (zmq.LINGER, 0),
            # no HEARTBEAT_IVL: with a RCVHWM it lets a peer abort us (broker/mailbox.py says how)
            (zmq.HANDSHAKE_IVL, 1_000),
            (zmq.BACKLOG, 256),
            (zmq.IPV6, int("[" in address)),
        ):
            router.setsockopt(option, value)
        self._door = Door(self._context, router, key, dict(self.settings.allow))
        try:
            router.bind(address)
        except zmq.ZMQError as error:
            raise RemoteError(
                "INVALID_SPEC",
                f"cannot listen on {address}: {error}",
                "choose another address with --listen",
            ) from None
        return router

    @property
    def address(self) -> str:
        """Where it listens; with the port that the kernel chose."""
        return self._socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore

    def open(self) -> None:
        """Audit the books, read them, mint what the settings say."""
        began = time.monotonic()
        faults = self.book.faults()
        seconds = time.monotonic() - began
        if faults:
            self._set_read_only("its audit failed: " + "; ".join(faults))
        try:
            self.book.load()
        except Exception as error:  # a damaged page can make anything of a value
            self._set_read_only(f"its books cannot be read: {error}")
        self._open_epochs()
        log.info(
            "audit of %s in %.2f s: %d accounts, %d transfers, %s",
            self.book.size(),
            seconds,
            len(self.book.state.accounts),
            self.book.state.transfers,
            "FAILED" if faults else "sum zero",
        )
        for tenant, amount in self.settings.fund:
            if self.read_only:
                break
            fund = Fund(0, tenant, amount, f"up/{tenant}")
            for effect in self.book.apply([fund], _now_ms())[0]:
                if isinstance(effect, fx.AnswerOperator) and effect.code:
                    log.warning("not funded again: %s", effect.message)

    def _open_epochs(self) -> None:
        try:
            self.epochs.load(_now_ms(), bool(self.read_only))
        except (PostponedError, RefusedError) as error:
            log.error("the ledger's key cannot be stated now: %s", error)
        except Exception as error:
            self._set_read_only(f"its epochs cannot be read: {error}")

    def _close_epoch(self, is_ending: bool = False) -> None:
        if self.read_only:
            return
        try:
            self.epochs.look(_now_ms(), is_ending)
        except PostponedError as error:
            self.counts["postponed"] += 1
            self.epochs.postpone(_now_ms())
            if self._floods.count("epoch", _monotonic_ms()):
                log.error("an epoch cannot be closed now: %s", error)
        except RefusedError as error:
            self.counts["broken"] += 1
            self._set_read_only(f"an epoch was refused: {error}")

    def _open_incident(self, told: str) -> None:
        self.counts["incidents"] += 1
        log.error("ALARM %s", told)
        if not self.read_only:
            self._set_read_only(told)

    def _set_read_only(self, reason: str) -> None:
        self.read_only = reason
        log.critical(
            "ALARM: this ledger is read-only: %s. Posts are refused and stay in the broker's "
            "outbox; restore %s from a backup or have it examined, then restart",
            reason,
            self.book.place,
        )

    # ------------------------------------------------------------ the loop

    def run(self, stop: socket.socket, supervisor: Supervisor = NOBODY) -> None:
        """Serve until ``stop`` is readable; each turn feeds the watchdog."""
        rest_ms = LOOK_MS
        if supervisor.watchdog_s:
            rest_ms = min(rest_ms, int(supervisor.feed_every_s * 1_000))
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        if self._door.socket is not None:
            poller.register(self._door.socket, zmq.POLLIN)
        while True:
            waits = [self._watches.wait_ms(_now_ms()), rest_ms]
            if not self.read_only:
                waits.append(self.epochs.wait_ms(_now_ms()))
            if self._refusals.is_waiting:
                waits.append(SECOND_MS)
            ready = dict(poller.poll(min(wait for wait in waits if wait is not None) + 1))
            if self._door.socket in ready and (told := self._door.answer()):
                self._note_refused(*told)
            if self._socket in ready:
                self.turn()
            for line in self._refusals.due(_monotonic_ms()):
                log.error("ALARM refused: %s", line)
            self._watches.due(self.book.state, _now_ms(), self._answer)
            self.look(_now_ms())
            self._close_epoch(is_ending=stop.fileno() in ready)
            supervisor.feed()
            if stop.fileno() in ready:
                supervisor.stopping("ends")
                return

    def look(self, now_ms: int) -> None:
        """Now and then: what brokers hold that were lost for good goes back to their tenants."""
        if now_ms - self._looked_ms < LOOK_MS or self.read_only:
            return
        self._looked_ms = now_ms
        silence_ms = self.settings.hold_expiry_s * 1000
        try:
            for effect in self.book.expire(silence_ms, self._began_ms, now_ms):
                if isinstance(effect, fx.RaiseAlarm):
                    self.counts["alarms"] += 1
                    log.error("ALARM %s: %.500s", effect.code, effect.message)
        except PostponedError as error:
            self.counts["postponed"] += 1
            log.error("holds cannot expire now: %s", error)
        except RefusedError as error:
            self.counts["broken"] += 1
            self._set_read_only(f"an expiry was refused: {error}")

    def turn(self) -> None:
        """Take what waits, commit it as one group, answer."""
        posts: list[tuple[bytes, Asked]] = []
        purchases: list[tuple[bytes, Asked]] = []
        questions: list[tuple[bytes, Any]] = []
        size = 0
        while size < self.settings.group_entries:
            try:
                frames, public = self._door.receive(self._socket)
            except zmq.Again:
                break
            size += 1
            message = self._decode(frames, public)
            if isinstance(message, chain.Message):
                self._rentals.hear(frames[0], message)
            if isinstance(message, Post):
                posts.append((frames[0], message))
                size += len(message.entries)
            elif isinstance(message, Fund | Transfer):
                posts.append((frames[0], message))
            elif isinstance(message, _CHECKED) and (told := wrong_text(message)):
                request: int = message.request  # type: ignore[union-attr]
                self._send(frames[0], LedgerRefused(request, "MALFORMED", told))
            elif isinstance(message, payments.Asked | chain.Said):
                purchases.append((frames[0], message))
            elif message is not None:
                questions.append((frames[0], message))
        if posts:
            self._apply(posts)
        for purchase in purchases:  # each reads what the one before wrote
            self._apply([purchase])
        for peer, question in questions:
            is_watch = isinstance(question, AskBalance)
            if not is_watch or not self._watches.take(peer, question, self.book.state, _now_ms()):
                self._answer(peer, question)

    def _note_refused(self, public: str, error: RemoteError) -> None:
        """One line for each key and second, with how many there were."""
        name = public or "local"
        if line := self._refusals.note(name, error.code, error.message, _monotonic_ms()):
            log.error("ALARM refused: %s", line)

    def _decode(self, frames: list[bytes], public: str) -> Any:
        """The message, or None when it was refused here; ``public``: the key of who said it."""
        self.counts["messages"] += 1
        try:
            if len(frames) != 2:
                raise RemoteError(
                    "MALFORMED", f"a message of {len(frames) - 1} frames; the dialogue has one"
                )
            message = decode_to_ledger.decode(frames[1])
        except RemoteError as error:
            self.counts["malformed"] += 1
            self._note_refused(public, error)
            self._send(frames[0], LedgerRefused(0, error.code, error.message))
            return None
        try:
            self._door.check(public, message, self.book.state)
        except RemoteError as error:
            self._note_refused(public, error)
            self._send(
                frames[0], LedgerRefused(getattr(message, "request", 0), error.code, error.message)
            )
            return None
        return message

    def _apply(self, posts: list[tuple[bytes, Asked]]) -> None:
        if self.read_only:
            self._refuse(posts, f"the ledger is read-only: {self.read_only:.1000}")
            return
        try:
            done = self.book.apply([message for _, message in posts], _now_ms())
        except PostponedError as error:  # the broker sends it again
            self.counts["postponed"] += 1
            log.error("%d messages cannot be written now: %s", len(posts), error)
            self._refuse(posts, str(error))
            return
        except RefusedError as error:
            self.counts["broken"] += 1
            self._set_read_only(f"a group of {len(posts)} messages was refused: {error}")
            self._refuse(posts, f"the ledger is read-only: {self.read_only:.1000}")
            return
        self.counts["groups"] += 1
        receipts = self.counts["contributions"]
        for (peer, message), effects in zip(posts, done, strict=True):
            for effect in effects:
                self._report(peer, message, effect)
        self.epochs.note(self.counts["contributions"] - receipts, _now_ms())

    def _report(self, peer: bytes, message: Asked, effect: fx.AnyEffect) -> None:
        """Count, log or send what became of a message, after the commit."""
        if isinstance(effect, fx.AddContribution):
            self.counts["contributions"] += 1
        elif isinstance(effect, fx.AddEntry):
            self.counts["entries"] += 1
        elif isinstance(effect, fx.RaiseAlarm):
            self.counts["alarms"] += 1
            if count := self._floods.count(f"alarm {effect.code}", _monotonic_ms()):
                log.error("ALARM %s, %d now: %.500s", effect.code, count, effect.message)
        elif isinstance(effect, fx.Acknowledge):
            if isinstance(message, Post) and message.first > effect.sequence + 1:
                self.counts["gaps"] += 1
                if count := self._floods.count("gap", _monotonic_ms()):
                    log.warning(
                        "gaps=%d, now: %.80s sent entry %d; the next is %d",
                        count, message.broker, message.first, effect.sequence + 1,
                    )  # fmt: skip
            for acked in split_acked(effect):
                self._send(peer, acked)
        elif isinstance(effect, AnswerIntent | WakeTreasury):
            assert not isinstance(message, Post)
            self._purchases.report(peer, message.request, effect)
        elif isinstance(effect, AnswerChain):
            assert isinstance(message, chain.Said)
            self._rentals.report(peer, message.request, effect)
        elif isinstance(effect, fx.AnswerOperator):
            assert isinstance(message, Fund | Transfer)
            if effect.code:
                self._send(peer, LedgerRefused(message.request, effect.code, effect.message))
                return
            log.info("%s%s", _told(message), ", done before" if effect.is_repeat else "")
            self._send(peer, LedgerAnswer(message.request, _YES))

    def _refuse(self, posts: list[tuple[bytes, Asked]], message: str) -> None:
        for peer, post in posts:
            request = 0 if isinstance(post, Post) else post.request
            self._send(peer, LedgerRefused(request, "LEDGER_DOWN", message))

    def _answer(
        self,
        peer: bytes,
        question: Ping | AskUsage | AskBalance | AskStatement | AskReceipts | Question | OfChain,
    ) -> None:
        if isinstance(question, Ping):
            if self.read_only:
                self._send(
                    peer,
                    LedgerRefused(
                        0, "LEDGER_DOWN", f"the ledger is read-only: {self.read_only:.1000}"
                    ),
                )
            else:
                state = self.book.state
                if question.broker in state.applied:  # it lives, with nothing to post
                    state.heard[question.broker] = _now_ms()
                self._send(peer, Acked(question.broker, state.applied.get(question.broker, 0)))
            return
        try:
            body: Any
            if isinstance(question, chain.Message):
                body = self._rentals.answer(peer, question)
                if body is None:
                    return
            elif isinstance(question, payments.Message):
                body = self._purchases.answer(peer, question)
            elif isinstance(question, AskUsage):
                body = bills.usage(self.book.db, question)
            elif isinstance(question, AskReceipts):
                body = self.epochs.page(question)
            elif isinstance(question, AskStatement):
                body = self._statements.page(question)
            else:
                body = bills.balance(self.book.db, self.book.state, question.tenant)
                if body.sum_ucredits and not self.read_only:
                    self._set_read_only(f"the sum of all accounts is {body.sum_ucredits}, not 0")
            answer = msgspec.Raw(msgspec.msgpack.encode(body))
            self._send(peer, LedgerAnswer(question.request, answer))
        except RemoteError as error:
            self._send(peer, LedgerRefused(question.request, error.code, error.message))
        except Exception as error:  # a damaged page can make anything of a value
            log.error("a question failed: %s", error)
            message = f"the ledger cannot read its books: {error}"
            self._send(peer, LedgerRefused(question.request, "INTERNAL", message))
            if isinstance(self.book.explain(error), GoneError):
                raise self.book.explain(error) from error

    def _send(self, peer: bytes, message: msgspec.Struct) -> None:
        if not peer:
            return  # funded by the settings, asked by nobody
        if isinstance(message, LedgerRefused) and len(message.message) > REFUSED_CHARS_MAX:
            cut = f"{message.message[:REFUSED_CHARS_MAX]} ... and more"
            message = msgspec.structs.replace(message, message=cut)
        try:
            self._socket.send_multipart([peer, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            # Gone, or does not read: it will ask again, and everything here can be asked again.
            self.counts["unsent"] += 1

    def close(self) -> None:
        """Close the socket and the book."""
        self._socket.close(0)
        self._door.close()
        self._context.term()
        self.book.close()
        address = self.settings.listen
        if address.startswith("ipc://"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.removeprefix("ipc://"))


def open_book(settings: Settings) -> Book:
    """The books that the settings name.

    Raises:
        RemoteError, apsw.Error: see the books' own classes.
    """
    if not settings.books:
        return SqliteBook(settings.state)
    try:
        from gristmill.ledger.postgres import PostgresBook  # an extra, and slow to import
    except ImportError as error:
        raise RemoteError(
            "INVALID_SPEC",
            f"--books needs a driver that is not installed here ({error})",
            "pip install 'gristmill[postgres]'",
        ) from None
    return PostgresBook(settings.books)


def _told(message: Fund | Transfer) -> str:
    """What an operator did, for the log."""
    if isinstance(message, Fund):
        return (
            f"{format_credits(message.amount_ucredits)} credits to {message.tenant} ({message.ref})"
        )
    return "; ".join(
        f"{format_credits(leg.amount_ucredits)} credits from {leg.debit} to {leg.credit} "
        f"({leg.id.hex()})"
        for leg in message.legs
    )


def split_acked(effect: fx.Acknowledge) -> list[Acked]:
    """An acknowledgement as messages whose headers keep their limit; the last one has it all.

    The verdicts of a post full of refused holds are longer than the post.
    """
    parts: list[Acked] = []
    verdicts: list[Verdict] = []
    size = 0
    for verdict in effect.verdicts:
        if verdicts and size + len(verdict.message) > ACKED_CHARS_MAX:
            parts.append(Acked(effect.broker, verdicts[-1].sequence, verdicts))
            verdicts, size = [], 0
        verdicts.append(verdict)
        size += len(verdict.message) + len(verdict.ref) + 64
    return [*parts, Acked(effect.broker, effect.sequence, verdicts)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def serve(settings: Settings) -> int:
    """The process's life; an exit code of wire/errors.py."""
    os.umask(0o077)
    begin_logging("%(asctime)s %(name)s %(levelname)s %(message)s")
    raise_descriptor_limit()
    stop = stopping_socket()
    supervisor = supervisor_of(os.environ)
    if settings.is_dying_with_parent:
        die_with_parent()
    try:
        ledger = Ledger(settings)
    except RemoteError as error:
        return ended_by(error)
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        file = settings.state / "ledger.db"
        print(
            f"{file} is damaged and cannot be read: {error}\n  -> restore {file} from a backup; "
            "it was left as it is",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except (OSError, apsw.Error) as error:
        print(f"the ledger cannot open {settings.state}: {error}", file=sys.stderr)
        return EXIT_FAILED
    try:
        ledger.open()
        announce_ready("ledger", ledger.address, settings.ready_fd, supervisor)
        ledger.run(stop, supervisor)
        log.info("ends: %s", dict(ledger.counts))
    except (apsw.Error, GoneError) as error:  # the kernel may have dropped what it could not write
        log.critical(
            "the disk of %s failed: %s %s. What was acknowledged is on it; start again to read "
            "what is there",
            ledger.book.place,
            type(error).__name__,
            error,
        )
        return EXIT_FAILED
    finally:
        ledger.close()
    return EXIT_OK
