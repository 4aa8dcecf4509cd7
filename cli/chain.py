"""``gristmill chain``: the contracts deployed, looked at and compared; keys made."""

import argparse
import datetime
import os
import pathlib
from typing import TYPE_CHECKING

from gristmill.cli import documents, documents_chain
from gristmill.cli.output import Terminal
from gristmill.wire.errors import CODES, EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.units import format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.contracts.deployment import Deployment, Placed
    from gristmill.contracts.keys import Signer
    from gristmill.contracts.overview import Overview, Seen
    from gristmill.contracts.plan import Plan, Step, Wanted


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions."""
    try:
        import gristmill.contracts.ethereum  # noqa: F401  none of it is in the base installation
    except ImportError as error:
        raise RemoteError(
            "INVALID_SPEC", f"the chain needs {error.name}", "pip install 'gristmill[chain]'"
        ) from None
    actions = {"deploy": _deploy, "status": _status, "verify": _verify, "key": _key}
    return actions[args.action](args, terminal)


# ---------------------------------------------------------------- deploy


def _deploy(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts import deployment, plan
    from gristmill.contracts.rpc import Chain

    path = pathlib.Path(args.deployment)
    known = deployment.read(path) if path.exists() else None
    sender = _sender(args)
    wanted = _wanted(args, sender)
    chain = Chain(args.rpc, known.chain_id if known is not None else None)
    try:
        made = plan.make(chain, wanted, sender, known)
        effects = _effects(wanted, sender)
        if not args.send:
            _show_plan(made, chain.chain_id, effects, args.deployment, terminal)
            plan.check_funds(made)
            if not terminal.is_json:
                terminal.say("nothing was sent; the same with --send does it")
            return EXIT_OK
        if not terminal.is_json:
            _say_plan(made, terminal)
        plan.check_funds(made)
        if known is not None and all(step.state == "done" for step in made.steps):
            done = known
        else:
            signer = _signer(args, sender)
            done = plan.execute(
                chain, made, signer, path, known, lambda s, p: _tell(s, p, terminal)
            )
    finally:
        chain.close()
    _show_done(made, done, effects, args.deployment, terminal)
    return EXIT_OK


def _sender(args: argparse.Namespace) -> bytes:
    """Who deploys, without a password so far."""
    from gristmill.contracts import abi, keys

    if (args.key is None) == (args.signer is None):
        raise RemoteError(
            "INVALID_SPEC",
            "either --key or --signer says who deploys",
            "--key FILE, which 'gristmill chain key new FILE' makes",
        )
    if args.key is not None:
        if args.sender is not None:
            raise RemoteError(
                "INVALID_SPEC", "--from is for --signer: a keystore has one key", "leave it out"
            )
        return keys.address_in(pathlib.Path(args.key))
    if args.sender is None:
        raise RemoteError("INVALID_SPEC", "--signer needs --from", "--from ADDRESS of its key")
    return abi.parse_address(args.sender, "--from")


def _signer(args: argparse.Namespace, sender: bytes) -> "Signer":
    from gristmill.contracts import keys
    from gristmill.contracts.abi import show_address

    if args.signer is not None:
        return keys.ExternalSigner(args.signer, sender)
    path = pathlib.Path(args.key)
    signer = keys.open_keystore(path, _password(args, f"password of {path}"))
    if signer.address != sender:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} says that it is of {show_address(sender)}, and its key is of "
            f"{show_address(signer.address)}",
            "restore it from a copy",
        )
    return signer


def _password(args: argparse.Namespace, what: str) -> str:
    from gristmill.contracts.keys import read_password

    path = pathlib.Path(args.password_file) if args.password_file else None
    return read_password(path, args.password_fd, what)


def _wanted(args: argparse.Namespace, sender: bytes) -> "Wanted":
    """What the options say; every address that is wrong is named."""
    from gristmill.contracts.abi import ZERO_ADDRESS, parse_address
    from gristmill.contracts.plan import Wanted

    faults: list[str] = []

    def read(option: str, text: str | None) -> bytes:
        try:
            return parse_address(text, option) if text is not None else sender
        except RemoteError as error:
            faults.append(f"{error.message} ({error.hint})")
            return ZERO_ADDRESS

    wanted = Wanted(
        b"" if args.dev_token else read("--token", args.token),
        read("--fee-wallet", args.fee_wallet),
        read("--arbiter", args.arbiter),
        read("--guardian", args.guardian),
        read("--coordinator", args.coordinator),
        args.window,
        args.cap,
        args.grace,
        args.dispute_window,
    )
    if faults:
        raise RemoteError("INVALID_SPEC", "; ".join(faults), "gristmill chain deploy --help")
    return wanted


def _effects(wanted: "Wanted", sender: bytes) -> list[str]:
    """Who can do what when it is done."""
    from gristmill.contracts.abi import show_address as show

    def days(seconds: int) -> str:
        return format_ms(seconds * 1000)

    return [
        f"{show(wanted.coordinator)} owns WorkPool, posts its roots, each at most "
        f"{format_credits(wanted.cap_ucredits)} credits above the last; it can appoint who posts, "
        "and propose another guardian, who can take over 30 days later; it can veto too",
        f"{show(wanted.guardian)} can veto a root in the {days(wanted.window_s)} before it opens",
        f"{show(wanted.arbiter)} decides disputes, between what the client signed and what is "
        f"locked; after {days(wanted.dispute_window_s)} of silence what was signed is paid",
        f"a provider can redeem until {days(wanted.grace_s)} after a rental's deadline; then "
        "anybody can send the rest back to the client",
        f"{show(wanted.fee_wallet)} is owed 3 % of what is paid",
        f"{show(sender)} owns ComputeRental and PromptMarketplace: it can propose another fee "
        "wallet, which anybody can put in place two days later; it can move nobody's money",
        "nobody can change the code, the token, the arbiter, the times or the cap",
    ]


def _cost(plan: "Plan") -> list[tuple[str, str]]:
    from gristmill.contracts.plan import coins

    fee = (plan.fees.base + plan.fees.priority) / 10**9
    return [
        ("gas", f"{plan.gas:,} at {fee:g} gwei: {coins(plan.cost)} coin"),
        ("at most", f"{coins(plan.cost_limit)} coin, at twice that fee"),
        ("balance", f"{coins(plan.balance)} coin"),
    ]


def _show_plan(
    plan: "Plan", chain_id: int, effects: list[str], file: str, terminal: Terminal
) -> None:
    from gristmill.contracts.abi import show_address

    if terminal.is_json:
        terminal.document(documents.encode(_document(plan, None, effects, file, chain_id)))
        return
    rows = [
        [s.name, s.state, show_address(s.address), f"{s.gas:,}" if s.gas else ""]
        for s in plan.steps
    ]
    terminal.table(
        ["CONTRACT", "STATE", "ADDRESS", "GAS"], rows, right=["GAS"], whole=["ADDRESS", "GAS"]
    )
    known = [
        ("chain", str(chain_id)),
        ("token", show_address(plan.token)),
        ("deployer", show_address(plan.sender)),
        *_cost(plan),
        ("effects", "\n".join(effects)),
    ]
    terminal.card(f"deployment {file}", known)


def _say_plan(plan: "Plan", terminal: Terminal) -> None:
    left = [step.name for step in plan.steps if step.state != "done"]
    terminal.say(f"to do: {', '.join(left) or 'nothing'}")
    for name, value in _cost(plan) if left else []:
        terminal.say(f"  {name}: {value}")


def _tell(step: "Step", placed: "Placed", terminal: Terminal) -> None:
    from gristmill.contracts.abi import show_address

    terminal.say(f"{step.name} lies at {show_address(step.address)} since block {placed.block}")


def _show_done(
    plan: "Plan", done: "Deployment", effects: list[str], file: str, terminal: Terminal
) -> None:
    from gristmill.contracts.abi import show_address

    if terminal.is_json:
        terminal.document(documents.encode(_document(plan, done, effects, file, done.chain_id)))
        return
    rows = [
        [name, show_address(placed.address), str(placed.block), f"0x{placed.transaction.hex()}"]
        for name, placed in done.contracts.items()
    ]
    terminal.table(
        ["CONTRACT", "ADDRESS", "BLOCK", "TRANSACTION"], rows, right=["BLOCK"], whole=["ADDRESS"]
    )
    terminal.say(f"next: gristmill chain status --deployment {file} --rpc URL")


def _document(
    plan: "Plan", done: "Deployment | None", effects: list[str], file: str, chain_id: int
) -> documents_chain.ChainDeploy:
    from gristmill.contracts import abi

    steps = []
    for step in plan.steps:
        names = abi.interface_of(step.name).constructor_names()
        told = {n: abi.show(v) for n, v in zip(names, step.arguments, strict=True)}
        placed = done.contracts[step.name] if done is not None else None
        transaction = placed.transaction if placed is not None else step.sent
        steps.append(
            documents_chain.ChainStep(
                step.name,
                "done" if done is not None else step.state,
                abi.show_address(step.address),
                told,
                step.gas,
                placed.block if placed is not None else 0,
                f"0x{transaction.hex()}" if transaction else "",
            )
        )
    return documents_chain.ChainDeploy(
        done is None,
        chain_id,
        abi.show_address(plan.sender),
        abi.show_address(plan.token),
        file,
        steps,
        plan.gas,
        plan.cost,
        plan.cost_limit,
        plan.balance,
        effects,
    )


# ---------------------------------------------------------------- status


def _status(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts import deployment, overview
    from gristmill.contracts.rpc import Chain

    read = deployment.read(pathlib.Path(args.deployment))
    chain = Chain(args.rpc, read.chain_id)
    try:
        seen = overview.look(read, chain)
    finally:
        chain.close()
    if terminal.is_json:
        terminal.document(documents.encode(_status_document(seen)))
    else:
        _show_status(seen, terminal)
    faults = [f"{contract.name}: {contract.fault}" for contract in seen.contracts if contract.fault]
    if faults:
        wrong = CODES["CHAIN_WRONG"]
        terminal.say(f"CHAIN_WRONG {'; '.join(faults)}", "red")
        terminal.say("  next: compare the deployment file with its publisher's; send nothing")
        return wrong.exit_code
    return EXIT_OK


def _show_status(seen: "Overview", terminal: Terminal) -> None:
    from gristmill.contracts.abi import show_address

    at = datetime.datetime.fromtimestamp(seen.now_s, datetime.UTC)
    terminal.card(
        f"chain {seen.chain_id}",
        [
            ("block", f"{seen.block:,} of {at:%Y-%m-%d %H:%M:%S} UTC"),
            ("token", f"{show_address(seen.token)} {seen.symbol}"),
        ],
    )
    rows = [
        [
            contract.name,
            show_address(contract.address),
            "differs" if contract.fault else "ok",
            _shown(contract.owner),
            _shown(contract.fee_wallet),
            "" if contract.fault else format_credits(contract.balance),
            "" if contract.liability is None else format_credits(contract.liability),
        ]
        for contract in seen.contracts
    ]
    terminal.table(
        ["CONTRACT", "ADDRESS", "CODE", "OWNER", "FEE WALLET", "BALANCE", "OWED"],
        rows,
        right=["BALANCE", "OWED"],
        whole=["ADDRESS", "CODE", "BALANCE", "OWED"],
        styles={"CONTRACT": "bold"},
    )
    for contract in seen.contracts:
        for title, pairs in _cards(contract, seen.now_s):
            terminal.card(title, pairs)


def _cards(contract: "Seen", now_s: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """What of a contract is in no column."""
    found = []
    if contract.next_owner:
        told = f"{_shown(contract.next_owner)} can take {contract.name} over by accepting it"
        found.append((told, list[tuple[str, str]]()))
    if contract.proposal:
        when = _countdown(contract.proposal_from_s, now_s)
        told = f"{contract.name}: {_shown(contract.proposal)} is to be the fee wallet"
        found.append((told, [("can be put in place", when)]))
    if contract.pool is not None:
        pool = contract.pool
        pairs = [
            ("root", f"{pool.number}: 0x{pool.root.hex()}" if pool.number else "none yet"),
            ("total", format_credits(pool.total)),
            ("claimed", format_credits(pool.claimed)),
            ("coordinator", _shown(pool.coordinator)),
            ("guardian", _shown(pool.guardian)),
        ]
        if pool.waiting:
            pairs += [
                ("waits", f"{pool.waiting}: 0x{pool.waiting_root.hex()}"),
                ("its total", format_credits(pool.waiting_total)),
                ("opens", _countdown(pool.waiting_from_s, now_s)),
            ]
        found.append(("WorkPool", pairs))
    return found


def _countdown(from_s: int, now_s: int) -> str:
    return f"in {format_ms((from_s - now_s) * 1000)}" if from_s > now_s else "now"


def _shown(address: bytes) -> str:
    from gristmill.contracts.abi import show_address

    return show_address(address) if address else ""


def _status_document(seen: "Overview") -> documents_chain.ChainStatus:
    rows = []
    for contract in seen.contracts:
        pool = None
        if contract.pool is not None:
            told = contract.pool
            pool = documents_chain.ChainPool(
                _shown(told.coordinator),
                _shown(told.guardian),
                told.number,
                f"0x{told.root.hex()}",
                told.total,
                told.claimed,
                told.waiting,
                f"0x{told.waiting_root.hex()}",
                told.waiting_total,
                told.waiting_from_s,
            )
        rows.append(
            documents_chain.ChainContract(
                contract.name,
                _shown(contract.address),
                contract.fault,
                _shown(contract.owner),
                _shown(contract.next_owner),
                _shown(contract.fee_wallet),
                _shown(contract.proposal),
                contract.proposal_from_s,
                contract.balance,
                contract.liability,
                pool,
            )
        )
    return documents_chain.ChainStatus(
        seen.chain_id, seen.block, seen.now_s, _shown(seen.token), seen.symbol, rows
    )


# ---------------------------------------------------------------- verify, key


def _verify(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts import deployment

    read = deployment.read(pathlib.Path(args.deployment))
    faults = deployment.check_pins(read)
    if terminal.is_json:
        told = {name: _shown(placed.address) for name, placed in read.contracts.items()}
        document = documents_chain.ChainPins(args.deployment, read.chain_id, told, faults)
        terminal.document(documents.encode(document))
    else:
        for fault in faults:
            terminal.print(fault)
        if not faults:
            count = len(read.contracts)
            terminal.print(f"{args.deployment}: {count} contracts of chain {read.chain_id} as here")
    return EXIT_FAILED if faults else EXIT_OK


def _key(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts import keys

    path = pathlib.Path(args.file)
    if path.exists():
        raise RemoteError(
            "UNAUTHORISED", f"{path} is there already", "name a new file: no key is written over"
        )
    password = _password(args, f"password for {path}")
    if not args.password_file and args.password_fd is None:
        if _password(args, "the same again") != password:
            raise RemoteError("UNAUTHORISED", "the two passwords differ", "type it again")
    address = _shown(keys.make_keystore(path, password))
    if terminal.is_json:
        document = documents_chain.ChainKey(os.fspath(path), address)
        terminal.document(documents.encode(document))
    else:
        terminal.print(f"{address} in {path}")
    return EXIT_OK
