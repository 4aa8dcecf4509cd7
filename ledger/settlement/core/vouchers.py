"""Which vouchers are taken: each is held against the rental, the last one, and the clock.

    what is wrong                               | code             | because
    --------------------------------------------|------------------|------------------------------
    another chain or contract                   | CHAIN_WRONG      | its signature counts there only
    no rental that is K deep                    | UNKNOWN_RENTAL   | nothing is locked for it
    the rental is closed                        | LEDGER_CONFLICT  | nothing is left in it
    more than is locked                         | INVALID_SPEC     | nobody could be paid
    no more than was paid                       | LEDGER_CONFLICT  | replayed
    less than the last one that was taken       | LEDGER_CONFLICT  | out of order
    the last one, below what the jobs spent     | INVALID_SPEC     | the grid would lose the rest
    too near to the refund                      | INVALID_SPEC     | it may not be redeemed in time
    the client did not sign it                  | UNAUTHORISED     | forged, or of another client

The same voucher again is taken again, and nothing changes: it is the answer that was lost.
"""

from collections.abc import Callable

import msgspec

from gristmill.ledger.settlement.core.mirror import Rental


class Voucher(msgspec.Struct, frozen=True):
    """What a client signed. ``cumulative``: micro-credits, gross, of the whole rental so far.

    ``is_last``: with it the rental may be settled: what is left goes back at once.
    """

    chain_id: int
    contract: bytes
    rental: bytes
    cumulative: int
    receipts_root: bytes
    signature: bytes
    is_last: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Why it is not taken: a code of wire/errors.py, the message, the next step."""

    code: str
    message: str
    hint: str = ""


def judge(
    voucher: Voucher,
    signer: Callable[[], bytes],
    here: tuple[int, bytes],
    rental: Rental | None,
    kept: Voucher | None,
    now_s: int,
    safe_s: int,
    spent: int = 0,
) -> Refusal | None:
    """None: take it.

    Args:
        voucher: what came.
        signer: finds whose signature it has (20 bytes, for our chain and contract; empty: none's).
            It takes long, so it is asked last.
        here: our chain id and contract.
        rental: of the voucher's id, certain; None: there is none.
        kept: the largest that was taken for it.
        now_s: Unix time.
        safe_s: from when on a redemption could come too late, Unix time.
        spent: by the rental's jobs, says the ledger.
    """
    if (voucher.chain_id, voucher.contract) != here:
        return Refusal(
            "CHAIN_WRONG",
            f"the voucher is for contract 0x{voucher.contract.hex()} on chain {voucher.chain_id}; "
            f"here it is 0x{here[1].hex()} on chain {here[0]}",
            "sign for the contract that the rental is in",
        )
    name = f"rental 0x{voucher.rental.hex()}"
    if rental is None:
        return Refusal("UNKNOWN_RENTAL", f"{name} is not on the chain, or not deep enough yet")
    if rental.state == "closed":
        return Refusal("LEDGER_CONFLICT", f"{name} is closed: {rental.paid} were paid in all")
    if voucher.cumulative > rental.locked:
        return Refusal(
            "INVALID_SPEC",
            f"the voucher is over {voucher.cumulative}; {rental.locked} are locked in {name}",
            "top the rental up first, or sign for less",
        )
    if kept is not None and voucher.cumulative < kept.cumulative:
        return Refusal(
            "LEDGER_CONFLICT",
            f"out of order: one over {kept.cumulative} was taken for {name}, this is over "
            f"{voucher.cumulative}",
            "figures are cumulative: sign for all of the work so far",
        )
    if voucher.is_last and voucher.cumulative < spent:
        return Refusal(
            "INVALID_SPEC",
            f"the last voucher of {name} is over {voucher.cumulative}; its jobs have spent {spent}",
            "sign for all of them",
        )
    is_new = voucher.cumulative > rental.paid
    if not is_new and not (voucher.is_last and voucher.cumulative == rental.paid):
        return Refusal(
            "LEDGER_CONFLICT",
            f"replayed: {rental.paid} of {name} are paid, the voucher is over {voucher.cumulative}",
            "figures are cumulative: sign for all of the work so far",
        )
    if now_s >= safe_s:
        return Refusal(
            "INVALID_SPEC",
            f"{name} can be refunded soon, at its deadline {rental.deadline_s} and the grace: the "
            "voucher may not be redeemed in time",
            "move the deadline with topUp, then send the voucher again",
        )
    if (found := signer()) != rental.client:
        by = f"by 0x{found.hex()}" if found else "by nobody"
        return Refusal(
            "UNAUTHORISED",
            f"the voucher over {voucher.cumulative} is signed {by}; the client of {name} is "
            f"0x{rental.client.hex()}",
            "sign with the key that locked the money, for this chain and this contract",
        )
    return None
