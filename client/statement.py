"""A statement of account as it is read: entry by entry, and whether they add up."""

from collections.abc import Callable, Iterator

from gristmill.wire.statement import StatementPage, StatementRow, Totals, incident_of


class Statement:
    """Entries in their order, read once; a large account's come a page at a time.

    Attributes:
        account: ``tenant:ann``.
        upto: as of this transfer, whatever is posted while it is read.
        totals: what the account had then, as the ledger told before the first entry.
        made: what the entries that were read make.
        incident: when all were read: the name of the mismatch, empty if they add up.
    """

    def __init__(self, page: Callable[[int, int], StatementPage]) -> None:
        """``page`` asks for entries (after, up to); 0 of both for the first."""
        self._page = page
        self._next: StatementPage | None = page(0, 0)
        self.account, self.upto = self._next.account, self._next.upto
        self.totals = self._next.totals or Totals()
        self.made = Totals()
        self.incident = ""

    def __iter__(self) -> Iterator[StatementRow]:
        """The entries that were not read yet."""
        while self._next is not None:
            page = self._next
            self._next = self._page(page.after, self.upto) if page.after else None
            self.made = self.made.after(page.rows)
            if self._next is None:
                self.incident = page.incident
                if not self.incident and self.made != self.totals:  # what came is not what is there
                    self.incident = incident_of(self.account, self.upto, self.made, self.totals)
            yield from page.rows
