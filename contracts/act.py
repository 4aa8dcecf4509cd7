"""One transaction of a person: estimated, signed, sent, and waited for.

A daemon has a queue of its own for them (gristmill.ledger.settlement); this is for commands and
scripts, which send one and look at what became of it.
"""

from typing import Any

from gristmill.contracts import abi
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.keys import Signer
from gristmill.contracts.rpc import Chain, Contract, Receipt, Transaction
from gristmill.wire.errors import RemoteError

GAS_MARGIN_PERCENT = 20  #: a limit so much above the estimate
GAS_MAX = 2_000_000  #: what costs more is none of our calls: the largest takes a tenth of it
MINED_S = 180.0  #: how long it may wait for its block


def estimated(chain: Chain, sender: bytes, contract: Contract, function: str, *values: Any) -> int:
    """Gas that a call would use; nothing is sent.

    Raises:
        RemoteError: ``CHAIN_REVERTED`` (a ``RevertedError``): the contract would refuse, and why.
    """
    body = contract.interface.encode_call(function, values)
    trial = Transaction(chain.chain_id, 0, contract.address, body, 0, 0, 0)
    try:
        return chain.estimate(trial, sender)
    except RevertedError as error:
        # An estimate names no function: a call of it does, with the same reason.
        chain.call(contract, function, *values, sender=sender)
        raise error from None


def act(
    chain: Chain,
    signer: Signer,
    contract: Contract,
    function: str,
    *values: Any,
    mined_s: float = MINED_S,
    gas_max: int = GAS_MAX,
) -> Receipt:
    """Call a function of a contract so that it counts; its receipt, in the newest block.

    Args:
        chain: where.
        signer: who pays the gas and is the caller.
        contract: whose.
        function: its name.
        values: its arguments; addresses and hashes are bytes.
        mined_s: how long to wait for the block.
        gas_max: units of gas; an estimate above it is not sent.

    Raises:
        RemoteError: ``CHAIN_REVERTED``: it would be refused, and nothing was sent, or was refused
            in its block; ``CHAIN_GAS``: it takes more than ``gas_max``; ``CHAIN_FUNDS``,
            ``CHAIN_DOWN``, or the signer's.
    """
    gas = estimated(chain, signer.address, contract, function, *values)
    if gas > gas_max:
        told = f"{function} of {contract.name} takes {gas:,} gas; the most is {gas_max:,}"
        raise RemoteError("CHAIN_GAS", f"{told}: nothing was sent")
    fees = chain.fees()
    limit = gas + gas * GAS_MARGIN_PERCENT // 100
    balance, most = chain.balance(signer.address), limit * fees.limit
    if balance < most:
        raise RemoteError(
            "CHAIN_FUNDS",
            f"{abi.show_address(signer.address)} has {balance} wei for gas; {function} of "
            f"{contract.name} may cost {most}",
            f"send it {most - balance} wei more, then say the same again",
        )
    transaction = Transaction(
        chain.chain_id,
        chain.nonce(signer.address, "pending"),
        contract.address,
        contract.interface.encode_call(function, values),
        limit,
        fees.limit,
        fees.priority,
    )
    receipt = chain.wait(chain.send(signer.sign(transaction)), mined_s)
    if not receipt.is_ok:
        raise RemoteError(
            "CHAIN_REVERTED",
            f"{function} of {contract.name} was refused in block {receipt.block} "
            f"(0x{receipt.transaction.hex()}): the chain was another than when it was tried",
            "look at what changed, then say the same again",
        )
    return receipt
