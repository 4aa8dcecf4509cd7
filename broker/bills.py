"""Questions about money: the ledger answers them; the broker knows who may ask what."""

from collections.abc import Callable

import msgspec

from gristmill.broker.ledger_link import LedgerLink, Question
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.sessions import ClientSession
from gristmill.wire.client import Answer, Ask
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import AskBalance, AskReceipts, AskStatement, AskUsage, parse_by
from gristmill.wire.limits import NAME_CHARS_MAX

DIGITS_MAX = 18  #: of an index or a receipt's number

Refuse = Callable[[ClientSession, int, RemoteError, int], None]
#: calls back, now or when it was read, if the job that is asked about is the tenant's
WithJob = Callable[[ClientSession, Ask, Callable[[], None]], None]


class Relay:
    """Brings questions to the ledger, and what it says to whoever asked.

    Args:
        refuse: answers a request with an error.
    """

    def __init__(
        self,
        ledger: LedgerLink,
        mailbox: Mailbox,
        clock: Callable[[], tuple[int, int]],
        refuse: Refuse,
    ) -> None:
        self._ledger = ledger
        self._mailbox = mailbox
        self._clock = clock
        self._refuse = refuse

    def ask(self, session: ClientSession, request: int, question: Question, job: int = 0) -> None:
        """``question`` with any number: it gets one of the link's."""

        def reply(body: msgspec.Raw | None, code: str, text: str) -> None:
            if body is not None:
                self._mailbox.send(session.peer, [encode(Answer(request, body))])
                return
            known = code if code in CODES else "INTERNAL"
            self._refuse(session, request, RemoteError(known, text), job)

        def make(number: int) -> Question:
            return msgspec.structs.replace(question, request=number)

        self._ledger.ask(make, self._clock()[0], reply)


class Bills:
    """See the module's text. ``broker``: its name, which is in the name of each hold."""

    def __init__(self, relay: Relay, broker: str, with_job: WithJob) -> None:
        self._relay = relay
        self._broker = broker
        self._with_job = with_job

    def usage(self, session: ClientSession, message: Ask) -> None:
        """The bill of the tenant, or of everybody for operators."""
        by, tenant = message.text or "job", session.tenant
        try:
            keys = parse_by(by)
        except ValueError as error:
            raise RemoteError("MALFORMED", f"usage by {error}") from None
        if message.digest == "all" and not session.is_operator:
            raise RemoteError("FORBIDDEN", f"{tenant} is no operator: own bills only")
        if session.is_operator and (message.digest == "all" or "tenant" in keys):
            tenant = ""
        ref = f"{self._broker}/{message.job}" if message.job else ""
        self._ask_about_job(session, message, AskUsage(0, tenant, by, ref))

    def balance(self, session: ClientSession, message: Ask) -> None:
        """The tenant's account, or all accounts for operators."""
        tenant = session.tenant
        if message.text == "all":
            if not session.is_operator:
                raise RemoteError("FORBIDDEN", f"{tenant} is no operator: own accounts only")
            tenant = ""
        if len(message.digest) > NAME_CHARS_MAX:
            raise RemoteError("MALFORMED", "digest is no tag of a balance")
        self._relay.ask(session, message.request, AskBalance(0, tenant, message.digest))

    def statement(self, session: ClientSession, message: Ask) -> None:
        """The tenant's entries, or those of any account for operators."""
        own = f"tenant:{session.tenant}"
        account = message.text or own
        if account != own and not session.is_operator:
            raise RemoteError("FORBIDDEN", f"{session.tenant} is no operator: own account only")
        asked = AskStatement(0, account, message.first, message.size_bytes)
        self._relay.ask(session, message.request, asked)

    def receipts(self, session: ClientSession, message: Ask) -> None:
        """Of a job, or those that one subtask is in, or one by its number."""
        text, ref = message.text, f"{self._broker}/{message.job}"
        digits = text.removeprefix("#")
        if text and not (digits.isdecimal() and digits.isascii() and len(digits) <= DIGITS_MAX):
            told = f"text is {text!r:.40}, must be an index, # and a receipt's number, or empty"
            raise RemoteError("MALFORMED", told)
        index = int(digits) if text and text == digits else -1
        number = int(digits) if text != digits else 0
        asked = AskReceipts(0, session.tenant, ref, index, message.first, number)
        self._ask_about_job(session, message, asked)

    def _ask_about_job(self, session: ClientSession, message: Ask, question: Question) -> None:
        def ask() -> None:
            self._relay.ask(session, message.request, question, message.job)

        if message.job:  # the ledger knows no jobs, only their holds
            self._with_job(session, message, ask)
        else:
            ask()
