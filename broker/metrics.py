"""What the broker counts: plain integers, exported by ``Ask(about="grid")``."""

import dataclasses
import functools
import importlib.metadata


@dataclasses.dataclass(slots=True)
class Metrics:
    """Counters since the start; ``export`` gives them by name."""

    front_messages: int = 0
    back_messages: int = 0
    malformed: int = 0
    refused: int = 0
    rate_limited: int = 0
    rejoins: int = 0
    requests_repeated: int = 0
    recovering: int = 0
    jobs_accepted: int = 0
    parcels_kept: int = 0
    parcel_bytes: int = 0
    results_kept: int = 0
    result_bytes: int = 0
    results_delivered: int = 0
    results_read_back: int = 0
    parcels_read_back: int = 0
    superseded: int = 0
    signatures_bad: int = 0
    lines_kept: int = 0
    lines_bytes: int = 0
    lines_dropped: int = 0
    lines_refused: int = 0
    reports: int = 0
    orders: int = 0
    leases: int = 0
    names_taken: int = 0
    peers_dropped: int = 0
    peers_unreachable: int = 0
    sends_queued: int = 0
    clients_expired: int = 0
    groups_committed: int = 0
    rows_committed: int = 0
    rows_quarantined: int = 0
    journal_salvaged: int = 0
    journal_full: int = 0
    journal_cuts: int = 0
    intake_pauses: int = 0
    descriptors_short: int = 0
    accepts_failed: int = 0
    outbox_added: int = 0
    outbox_posts: int = 0
    outbox_resends: int = 0
    ledger_refusals: int = 0
    grants: int = 0
    questions: int = 0

    def export(self) -> dict[str, int]:
        """Every counter by its name."""
        return dataclasses.asdict(self)


@functools.cache
@functools.cache
def own_version() -> str:
    """Of this installation, or nothing where it is none; asked for once, at the start.

    It reads a file: later there may be no descriptor left for that.
    """
    try:
        return importlib.metadata.version("gristmill")
    except importlib.metadata.PackageNotFoundError:
        return ""
