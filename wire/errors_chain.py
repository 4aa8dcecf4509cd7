"""Error codes of the chain: rows of ``CODES`` in ``errors.py``, which says what is in them."""

from typing import Final

_FAILED, _UNREACHABLE, _POLICY = 1, 3, 5  #: exit codes, of errors.py, which needs this module

Row = tuple[str, str, bool, int, int, str]
CHAIN_ROWS: Final[tuple[Row, ...]] = (
    (
        "CHAIN_DOWN",
        "no RPC of the chain gave a whole, sensible answer in time; what was sent may have arrived",
        True,
        503,
        _UNREACHABLE,
        "wait, or name another RPC with --rpc; saying the same again is safe",
    ),
    (
        "CHAIN_WRONG",
        "the chain, a contract or a token there is not the one that was named or pinned",
        False,
        409,
        _POLICY,
        "compare what the message names; nothing was sent",
    ),
    (
        "CHAIN_REVERTED",
        "a contract refused; its reason is in the message",
        False,
        409,
        _FAILED,
        "correct what the reason names; nothing has changed on the chain",
    ),
    (
        "CHAIN_REFUSED",
        "the RPC refused the request in its own words",
        False,
        409,
        _FAILED,
        "read its words, or name another RPC with --rpc",
    ),
    (
        "CHAIN_GAS",
        "a transaction would take more gas than its cap; nothing was sent",
        False,
        409,
        _POLICY,
        "look at what it calls: a wallet that is asked for its signature may burn gas",
    ),
    (
        "CHAIN_FUNDS",
        "the sending address has less of the chain's coin than the transaction may cost",
        True,
        402,
        _POLICY,
        "send coin to the address, then say the same again",
    ),
    (
        "CHAIN_NONCE",
        "a transaction of that sender and number is in a block already",
        True,
        409,
        _FAILED,
        "look which one it is, then say the same again with the next number",
    ),
    (
        "CHAIN_UNDERPRICED",
        "the fee is too low for the next blocks, or for taking the place of a waiting transaction",
        True,
        409,
        _FAILED,
        "say the same again with a higher fee",
    ),
)
