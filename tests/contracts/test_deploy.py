"""``gristmill chain``: a dry run that sends nothing, a deployment that survives interruption, and
what is refused: each with its reason and the next step."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from chain_rig import ChainRig, chain_rig
from lying_rpc_rig import liar

from gristmill.cli.documents import BY_NAME
from gristmill.cli.main import main
from gristmill.contracts import deployment, plan
from gristmill.contracts.abi import show_address
from gristmill.contracts.ethereum import Account
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain
from gristmill.wire.errors import RemoteError

PASSWORD = "a long password"
NAMES = ["DevToken", "WorkPool", "ComputeRental", "PromptMarketplace"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("status", ...)``: exit code, stdout, stderr of ``gristmill chain status ...``."""

    def chain(*words: str) -> tuple[int, str, str]:
        code = main(["chain", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return chain


def kept(path: pathlib.Path, body: str) -> pathlib.Path:
    """A file that only its owner reads."""
    path.write_text(body)
    path.chmod(0o600)
    return path


class Desk:
    """Options of ``chain deploy`` on a rig; ``key`` is the rig's first person's, in a keystore."""

    def __init__(self, rig: ChainRig, folder: pathlib.Path) -> None:
        self.rig, self.folder = rig, folder
        self.key = AccountKey(rig.people[0].secret)
        # few rounds: these tests are not about the time that a password takes
        made = Account.encrypt(self.key.secret, PASSWORD, kdf="scrypt", iterations=2)
        self.keystore = kept(folder / "key.json", json.dumps(made))
        self.password = kept(folder / "password", f"{PASSWORD}\n")
        self.file = folder / "grid.json"
        self.wallet, self.arbiter, self.guardian = (
            show_address(person.address) for person in rig.people[1:4]
        )

    def words(self, **changed: str | None) -> list[str]:
        """The options, some of them changed or (None) left out; ``""`` for one without a value."""
        options: dict[str, str | None] = {
            "rpc": self.rig.url, "deployment": str(self.file), "key": str(self.keystore),
            "password-file": str(self.password), "dev-token": "", "fee-wallet": self.wallet,
            "arbiter": self.arbiter, "guardian": self.guardian,
        }  # fmt: skip
        options |= {name.replace("_", "-"): value for name, value in changed.items()}
        words = [[f"--{name}", *([value] if value else [])] for name, value in options.items()
                 if value is not None]  # fmt: skip
        return ["deploy", *(word for option in words for word in option)]

    def nonce(self) -> int:
        return int(self.rig.ask("eth_getTransactionCount", show_address(self.key.address),
                                "pending"), 16)  # fmt: skip


@pytest.fixture
def desk(anvil: ChainRig, tmp_path: pathlib.Path) -> Desk:
    return Desk(anvil, tmp_path)


def document(out: str) -> Any:
    """What ``--json`` printed, as its schema says."""
    told = json.loads(out)
    return msgspec.convert(told, BY_NAME[told["schema"]])


def test_a_dry_run_sends_nothing(desk: Desk, run: Run) -> None:
    before = desk.nonce()
    code, out, err = run(*desk.words(password_file=None))  # it needs no password
    assert code == 0, err
    assert desk.nonce() == before
    assert not desk.file.exists()
    for name in NAMES:
        assert f"{name} " in out
    assert "to do" in out
    assert f"{desk.guardian} can veto a root in the 24 h 0 min before it opens" in out
    assert f"{desk.wallet} is owed 3 % of what is paid" in out
    assert "balance  10,000 coin" in " ".join(out.split(" ")).replace("   ", "  ")
    assert "nothing was sent" in err
    code, out, _ = run(*desk.words(json="", password_file=None))
    told = document(out)
    assert (code, told.is_dry_run, told.chain_id) == (0, True, 31337)
    assert [step.state for step in told.steps] == ["to do"] * 4
    assert told.gas == sum(step.gas for step in told.steps) > 5_000_000
    assert told.cost_limit_wei > told.cost_wei > told.gas


def test_it_is_deployed_as_the_dry_run_said_and_once(desk: Desk, run: Run) -> None:
    _, out, _ = run(*desk.words(json=""))
    foretold = document(out)
    before = desk.rig.ask("eth_getBalance", show_address(desk.key.address), "latest")
    code, out, err = run(*desk.words(json="", send=""))
    assert code == 0, err
    told = document(out)
    assert [(s.contract, s.address) for s in told.steps] == [
        (s.contract, s.address) for s in foretold.steps
    ]
    assert [step.state for step in told.steps] == ["done"] * 4
    after = desk.rig.ask("eth_getBalance", show_address(desk.key.address), "latest")
    assert 0 < int(before, 16) - int(after, 16) <= foretold.cost_limit_wei
    for step in foretold.steps:  # the estimate was a good one
        sent = next(s.transaction for s in told.steps if s.contract == step.contract)
        used = int(desk.rig.ask("eth_getTransactionReceipt", sent)["gasUsed"], 16)
        assert used <= step.gas <= used * 1.05, step.contract
    nonce, file = desk.nonce(), desk.file.read_bytes()
    code, out, err = run(*desk.words(send="", password_file=None))
    assert code == 0, err
    assert "to do: nothing" in err
    assert (desk.nonce(), desk.file.read_bytes()) == (nonce, file)
    assert deployment.encode(deployment.read(desk.file)) == file
    code, out, _ = run("verify", str(desk.file))
    assert (code, out) == (0, f"{desk.file}: 4 contracts of chain 31337 as here\n")


class InterruptedHereError(Exception):
    """Stands for a kill -9 at that point."""


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("moment", ["before send", "after send", "after its block"])
def test_an_interrupted_deployment_goes_on(
    desk: Desk, run: Run, monkeypatch: pytest.MonkeyPatch, step: int, moment: str
) -> None:
    counted = {"send": 0, "told": 0}
    send = Chain.send

    def stop_at_send(chain: Chain, raw: bytes) -> bytes:
        counted["send"] += 1
        if counted["send"] == step + 1:
            if moment == "after send":
                send(chain, raw)
            if moment != "after its block":
                raise InterruptedHereError
        return send(chain, raw)

    def stop_at_tell(*_: Any) -> None:
        counted["told"] += 1
        if moment == "after its block" and counted["told"] == step + 1:
            raise InterruptedHereError

    first = desk.nonce()
    with monkeypatch.context() as patch:
        patch.setattr(Chain, "send", stop_at_send)
        patch.setattr("gristmill.cli.chain._tell", stop_at_tell)
        with pytest.raises(InterruptedHereError):
            run(*desk.words(send=""))
    kept_then = deployment.read(desk.file)
    code, _, err = run("status", "--rpc", desk.rig.url, "--deployment", str(desk.file))
    if moment != "after its block" and step > 0:
        assert code == 5, err
        assert "sent, and not seen in a block" in err
    code, _, err = run(*desk.words(send=""))
    assert code == 0, err
    done = deployment.read(desk.file)
    assert desk.nonce() == first + 4  # none was paid for twice
    for name, placed in kept_then.contracts.items():
        assert done.contracts[name].address == placed.address
    with_chain = Chain([desk.rig.url])
    deployment.check(done, with_chain)
    with_chain.close()


def test_a_transaction_that_waits_is_waited_for(desk: Desk, run: Run) -> None:
    chain = Chain([desk.rig.url])
    wanted = plan.Wanted(
        b"", *(person.address for person in desk.rig.people[1:4]), desk.key.address,
        86_400, 10**10, 86_400, 7 * 86_400,
    )  # fmt: skip
    made = plan.make(chain, wanted, desk.key.address, None)
    desk.rig.ask("evm_setAutomine", False)
    try:
        with pytest.raises(RemoteError, match="is in no block after") as caught:
            plan.execute(chain, made, desk.key, desk.file, None, lambda *_: None, mined_s=0.2)
        assert caught.value.code == "CHAIN_DOWN"
        code, out, _ = run(*desk.words(json=""))
        told = document(out)
        assert code == 0
        assert [step.state for step in told.steps] == ["sent", *["to do"] * 3]
        assert told.steps[0].transaction
        desk.rig.mine()
    finally:
        desk.rig.ask("evm_setAutomine", True)
    code, _, err = run(*desk.words(send=""))
    assert code == 0, err
    assert len(deployment.read(desk.file).contracts) == 4
    chain.close()


def test_status_shows_what_the_contracts_say(desk: Desk, run: Run) -> None:
    assert run(*desk.words(send=""))[0] == 0
    status = ("status", "--rpc", desk.rig.url, "--deployment", str(desk.file))
    code, out, err = run(*status)
    assert code == 0, err
    assert out.count(" ok ") == 4
    assert "none yet" in out
    done = deployment.read(desk.file)
    chain = Chain([desk.rig.url])

    def do(contract: Any, function: str, *values: Any) -> None:
        body = contract.interface.encode_call(function, values)
        desk.rig.ask("eth_sendTransaction", {
            "from": show_address(desk.key.address), "to": show_address(contract.address),
            "data": f"0x{body.hex()}",
        })  # fmt: skip

    proposed = desk.rig.people[7].address
    do(done.at("ComputeRental"), "proposeFeeWallet", proposed)
    do(done.at("ComputeRental"), "transferOwnership", proposed)
    do(done.token_contract(), "mint", done.at("WorkPool").address, 2_500_000)
    do(done.at("WorkPool"), "post", b"\x05" * 32, bytes(32), bytes(32), 1_500_000)
    code, out, err = run(*status)
    assert code == 0, err
    assert f"ComputeRental: {show_address(proposed)} is to be the fee wallet" in out
    assert re.search(r"can be put in place  in (2 d|1 d 23 h|47 h|48 h)", out), out
    assert f"{show_address(proposed)} can take ComputeRental over" in out
    assert f"waits        1: 0x{'05' * 32}" in out
    code, out, _ = run(*status, "--json")
    told = {row.contract: row for row in document(out).contracts}
    assert told["WorkPool"].balance_ucredits == 2_500_000
    assert told["WorkPool"].pool.waiting_total_ucredits == 1_500_000
    assert told["WorkPool"].pool.number == 0
    assert told["ComputeRental"].proposal == told["ComputeRental"].next_owner
    desk.rig.mine(1, 2 * 86_400)
    code, out, _ = run(*status)
    assert "can be put in place  now" in out
    assert f"root         1: 0x{'05' * 32}" in out
    chain.close()


def test_code_that_differs_is_refused(desk: Desk, run: Run) -> None:
    assert run(*desk.words(send=""))[0] == 0
    place = show_address(deployment.read(desk.file).contracts["WorkPool"].address)
    desk.rig.ask("anvil_setCode", place, "0x60006000fd")
    code, out, err = run("status", "--rpc", desk.rig.url, "--deployment", str(desk.file))
    assert code == 5
    assert "differs" in out
    assert "CHAIN_WRONG WorkPool: its code has 5 bytes, the artifact's" in err
    code, _, err = run(*desk.words(send=""))
    assert code == 5
    assert f"WorkPool at {place}: its code has 5 bytes" in err


def test_other_arguments_than_it_was_begun_with_are_refused(desk: Desk, run: Run) -> None:
    assert run(*desk.words(send=""))[0] == 0
    code, _, err = run(*desk.words(send="", guardian=desk.arbiter, window="2d"))
    assert code == 5
    assert f"guardian is {desk.guardian}, not {desk.arbiter}; window is 86400, not 172800" in err


BAD = [
    ({"fee_wallet": "0x" + "0" * 40}, 2, "--fee-wallet is the zero address"),
    ({"arbiter": "0x70997970C51812dc3A010C7d01b50e0d17dc79c8"}, 2, "--arbiter 0x70997970C51812dc3"
     "A010C7d01b50e0d17dc79c8 has a false checksum"),
    ({"arbiter": "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"}, 2, "has no checksum"),
    ({"guardian": "0x1234"}, 2, "--guardian '0x1234' is no address"),
    ({"guardian": "ann.eth", "arbiter": ""}, 2, "expected one argument"),
    ({"dev_token": None, "token": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}, 5,
     "there is no contract at 0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    ({"token": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}, 2, "not allowed with argument"),
    ({"window": "59s"}, 2, "--window: 59 s is not from 60 s to 90 days"),
    ({"grace": "91d"}, 2, "--grace: 7862400 s is not from 60 s to 90 days"),
    ({"dispute_window": "1.5ms"}, 2, "--dispute-window"),
    ({"cap": "0"}, 2, "--cap: 0 is no amount"),
    ({"rpc": "ws://127.0.0.1:1"}, 2, "is no address of an RPC"),
    ({"rpc": "http://127.0.0.1:9"}, 3, "CHAIN_DOWN http://127.0.0.1:9: Connection refused"),
    ({"key": None}, 2, "either --key or --signer"),
    ({"from": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}, 2, "--from is for --signer"),
    ({"key": None, "signer": "http://127.0.0.1:9"}, 2, "--signer needs --from"),
    ({"key": "/nowhere"}, 4, "/nowhere (the keystore) cannot be read: No such file"),
    ({"deployment": "/nowhere/grid.json", "send": ""}, 2, "/nowhere/grid.json cannot be written"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "code", "told"), BAD)
def test_bad_input(
    desk: Desk, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], code: int, told: str
) -> None:
    before = desk.nonce()
    try:
        found = main(["chain", *desk.words(**changed)])
    except SystemExit as error:  # argparse's own
        found = int(str(error.code))
    err = capsys.readouterr().err
    assert (found, desk.nonce()) == (code, before), err
    assert told in err
    assert "next: " in err


def test_every_bad_address_is_named_at_once(desk: Desk, run: Run) -> None:
    _, _, err = run(*desk.words(fee_wallet="0x" + "0" * 40, arbiter="0x1", guardian="x"))
    assert all(option in err for option in ("--fee-wallet", "--arbiter", "--guardian"))


def test_a_guardian_must_be_somebody_else(desk: Desk, run: Run) -> None:
    own = show_address(desk.key.address)
    code, _, err = run(*desk.words(guardian=own))
    assert code == 2
    assert "nobody would watch" in err


def test_passwords(desk: Desk, run: Run) -> None:
    before = desk.nonce()
    wrong = kept(desk.folder / "wrong", "another password\n")
    code, _, err = run(*desk.words(send="", password_file=str(wrong)))
    assert (code, "its password is another one" in err) == (4, True)
    wrong.chmod(0o644)
    code, _, err = run(*desk.words(send="", password_file=str(wrong)))
    assert (code, "has mode 0644: others can read it" in err) == (4, True)
    assert f"chmod 600 {wrong}" in err
    code, _, err = run(*desk.words(send="", password_file=str(desk.folder / "none")))
    assert (code, "cannot be read: No such file" in err) == (4, True)
    assert (desk.nonce(), desk.file.exists()) == (before, False)
    reading, writing = os.pipe()
    os.write(writing, PASSWORD.encode())
    os.close(writing)
    code, _, err = run(*desk.words(send="", password_file=None, password_fd=str(reading)))
    assert code == 0, err


def test_too_little_coin_is_said_before_anything_is_sent(desk: Desk, run: Run) -> None:
    own, before = show_address(desk.key.address), desk.nonce()
    desk.rig.ask("anvil_setBalance", own, hex(10**15))
    for send in (None, ""):
        code, _, err = run(*desk.words(send=send))
        assert code == 5
        assert f"CHAIN_FUNDS {own} has 0.001 coin; the steps may cost up to 0.0" in err
        assert "next: send it 0.0" in err
    assert (desk.nonce(), desk.file.exists()) == (before, False)


@pytest.fixture(scope="module")
def mainnet() -> Iterator[ChainRig]:
    """A chain on which money would be worth something."""
    with chain_rig("--chain-id", "1") as rig:
        yield rig


def test_another_chain(desk: Desk, run: Run, mainnet: ChainRig) -> None:
    code, _, err = run(*desk.words(rpc=mainnet.url))
    assert code == 2
    assert "--dev-token is money that anybody makes: not on chain 1" in err
    assert run(*desk.words(send=""))[0] == 0
    for words in (
        desk.words(rpc=mainnet.url, send=""),
        ["status", "--rpc", mainnet.url, "--deployment", str(desk.file)],
    ):
        code, _, err = run(*words)
        assert code == 5
        assert f"CHAIN_WRONG {mainnet.url} is chain 1, and not 31337" in err


def test_an_rpc_that_turns_into_another_chain_gets_nothing(desk: Desk, run: Run) -> None:
    asked = {"eth_chainId": 0}
    people = (bytes([at]) * 20 for at in range(1, 5))
    wanted = plan.Wanted(b"", *people, 60, 1, 60, 60)

    def answer(method: str, params: Any) -> Any:
        if method == "eth_chainId":
            asked[method] += 1
            return "0x7a69" if asked[method] == 1 else "0x1"
        return desk.rig.ask(method, *params)

    with liar(answer) as server:
        chain = Chain([server.url])
        chain.close()
        with pytest.raises(RemoteError, match="is chain 1, and not 31337"):
            plan.make(chain, wanted, b"\2" * 20, None)
        assert "eth_sendRawTransaction" not in server.asked


def test_the_key_may_be_elsewhere(desk: Desk, run: Run) -> None:
    own = show_address(desk.key.address)
    options = {"key": None, "password_file": None, "signer": desk.rig.url, "send": "", "from": own}
    code, _, err = run(*desk.words(**options))
    assert code == 0, err
    assert len(deployment.read(desk.file).contracts) == 4
    other = show_address(AccountKey(b"\x11" * 32).address)
    desk.file.unlink()
    desk.rig.ask("anvil_setBalance", other, hex(10**19))
    code, _, err = run(*desk.words(**{**options, "from": other}))
    assert code == 4
    assert f"has no key of {other}" in err


def test_a_new_key(tmp_path: pathlib.Path, run: Run) -> None:
    password = kept(tmp_path / "password", "1234567\n")
    file = tmp_path / "key.json"
    words = ("key", "new", str(file), "--password-file", str(password))
    code, _, err = run(*words)
    assert (code, "has 7 characters, 8 are the least" in err) == (4, True)
    kept(password, f"{PASSWORD}\n")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    told = document(out)
    assert file.stat().st_mode & 0o777 == 0o600
    secret = Account.decrypt(json.loads(file.read_text()), PASSWORD)  # as any wallet opens it
    assert show_address(AccountKey(bytes(secret)).address) == told.address
    body = file.read_bytes()
    code, _, err = run(*words)
    assert (code, "no key is written over" in err) == (4, True)
    assert file.read_bytes() == body


def test_verify_names_what_is_not_ours(desk: Desk, run: Run) -> None:
    assert run(*desk.words(send=""))[0] == 0
    told = json.loads(desk.file.read_text())
    told["contracts"]["WorkPool"] |= {"block": 0, "code": ""}
    desk.file.write_text(json.dumps(told))
    code, out, _ = run("verify", str(desk.file))
    assert (code, out) == (1, "WorkPool: sent, and not seen in a block\n")
