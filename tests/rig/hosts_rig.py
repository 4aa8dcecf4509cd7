"""A fleet: several hosts of ``fleet_rig`` with addresses of their own on a bridge, and a person.

Bridge and hosts are in network namespaces that we made: nothing of this machine's own network is
touched. The first host has broker, ledger and store, the others have workers. The person is on the
bridge, with this checkout's command, an address and a token, and no other way in.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from collections import Counter
from typing import Any

import msgspec
from fleet_rig import PREFIX, FleetHost
from fleet_rig import why_not as why_no_host

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
NETWORK = "10.31.0"
PERSON = f"{NETWORK}.254"
SECONDS = 100.0
AUDIT = (
    "setpriv --reuid=gristmill-ledger --clear-groups gristmill ledger audit "
    "--state /var/lib/gristmill"
)
#: how much longer a job is made when it was over before what was to happen to it: commands take
#: long on a machine with much else to do
LONGER = (1, 4, 16)
NOBODYS_MAC = "02:00:00:00:00:01"


def why_not() -> str:
    """Why no fleet can be made here, or nothing."""
    if not shutil.which("ip"):
        return "this host has no ip: apt-get install iproute2"
    return why_no_host()


def hosts_wanted() -> int:
    """How many hosts a fleet has: GRISTMILL_FLEET_HOSTS, else 3."""
    return min(max(int(os.environ.get("GRISTMILL_FLEET_HOSTS", "3")), 2), len(NAMES))


class Network:
    """A bridge with a cable to each host."""

    def __init__(self) -> None:
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._hold("bridge")
        self.ip("bridge", "link add bridge type bridge")
        self.ip("bridge", f"address add {PERSON}/24 dev bridge")
        self.ip("bridge", "link set bridge up")

    def _hold(self, name: str) -> None:
        """A namespace lives as long as a process that is in it."""
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sh", "-euc",
                   "ip link set lo up; echo; exec sleep infinity"]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._holders[name] = process
        assert process.stdout is not None and process.stdout.readline() == b"\n"

    def path_of(self, name: str) -> str:
        """The namespace of a host, or the bridge's."""
        return f"/proc/{self._holders[name].pid}/ns/net"

    def ip(self, name: str, words: str) -> None:
        """``ip`` in a namespace."""
        command = ["nsenter", f"--net={self.path_of(name)}", "ip", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {words}: {done.stderr}"

    def plug(self, name: str, address: str) -> None:
        """A namespace for a host, and a cable from the bridge."""
        self._hold(name)
        pid = self._holders[name].pid
        self.ip("bridge", f"link add to-{name} type veth peer name host0 netns {pid}")
        self.ip("bridge", f"link set to-{name} master bridge up")
        self.ip(name, f"address add {address}/24 dev host0")
        self.ip(name, "link set host0 up")

    def cut(self, name: str) -> None:
        """The cable to a host is out: nothing goes either way."""
        self.ip("bridge", f"link set to-{name} down")

    def mend(self, name: str) -> None:
        """The cable is back."""
        self.ip("bridge", f"link set to-{name} up")

    def mute(self, name: str, address: str) -> None:
        """What a host sends to this address goes to nobody; what it is sent arrives."""
        self.ip(name, f"neighbour replace {address} lladdr {NOBODYS_MAC} dev host0 nud permanent")

    def unmute(self, name: str, address: str) -> None:
        """As before."""
        self.ip(name, f"neighbour delete {address} dev host0")

    def close(self) -> None:
        """With its namespaces everything in them is gone."""
        for process in self._holders.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Bill:
    """What receipts and ledger say of a job; they were compared. ``done``: subtasks paid for."""

    done: int
    receipts: int
    ucredits: int
    nodes: int


class Fleet:
    """See the module's text.

    Args:
        count: of hosts.
        slots: of each worker.
    """

    def __init__(self, count: int, slots: int = 2) -> None:
        self.network = Network()
        self.slots = slots
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.network.close)
        self.hosts: list[FleetHost] = []
        self._token = ""
        try:
            for number, name in enumerate(NAMES[:count], 1):
                address = f"{NETWORK}.{number}"
                self.network.plug(name, address)
                host = FleetHost(name, self.network.path_of(name), address)
                self.hosts.append(self._stack.enter_context(host))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.power_cut()  # an orderly end is test_fleet.py's
        self._stack.close()

    @property
    def broker(self) -> FleetHost:
        """The host with broker, ledger and store."""
        return self.hosts[0]

    @property
    def millers(self) -> list[FleetHost]:
        """The hosts with workers."""
        return self.hosts[1:]

    def deploy(self) -> None:
        """As docs/deploy.md says: what one host prints is typed on the other, and nothing else.

        All units are active afterwards, and each worker was let in.
        """
        broker = self.broker
        said = broker.shell(f"gristmill deploy install --no-worker --address {broker.address}")
        settings = broker.root / "etc/gristmill/ledger.env"
        settings.write_text(f"{settings.read_text()}GRISTMILL_LEDGER_EPOCH_S=1\n")
        broker.shell(behind(said.stderr, "next: "))
        for_workers = behind(said.stderr, "on each host of workers for this broker: ")
        for host in self.millers:
            said = host.shell(for_workers)
            settings = host.root / "etc/gristmill/worker.env"
            settings.write_text(f"{settings.read_text()}GRISTMILL_WORKER_SLOTS={self.slots}\n")
            broker.shell(
                behind(said.stderr, "on the broker's host, which lets in who has these keys: ")
            )
            host.shell(behind(said.stderr, "next: "))
        self._admit()
        wanted = {f"{host.name}-1": "idle" for host in self.millers}
        self.broker.until("all are in again", lambda: self.nodes() == wanted)

    def _admit(self) -> None:
        """A person gets a token and credits, by commands of the page."""
        state = "--state /var/lib/gristmill/broker"
        self._token = self.broker.shell(
            ". /etc/gristmill/keys.env; cd /; setpriv --reuid=gristmill-broker --clear-groups "
            f"{PREFIX}/bin/python -m gristmill.broker {state} --new-token ann "
            "--broker-key $GRISTMILL_STORE_KEY"
        ).stdout.strip()
        self.fund("ann")

    def fund(self, tenant: str) -> None:
        """A million credits."""
        self.broker.shell(
            ". /etc/gristmill/keys.env;"
            " GRISTMILL_TOKEN=$(cat /etc/credstore/gristmill-operator.token)"
            f" gristmill ledger fund {tenant} 1000000 --ref first"
            " --ledger tcp://127.0.0.1:7033 --ledger-key $GRISTMILL_BROKER_LEDGER_KEY"
        )

    # ------------------------------------------------------------ the person

    def person(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of a person at another machine, with an address and a token."""
        scripts = pathlib.Path(sys.executable).parent
        done = subprocess.run(
            ["nsenter", f"--net={self.network.path_of('bridge')}", sys.executable, "-P", "-m",
             "gristmill.cli.main", *arguments],
            env={"PATH": f"{scripts}:/usr/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
                 "GRISTMILL_ADDRESS": f"tcp://{self.broker.address}:7031",
                 "GRISTMILL_TOKEN": self._token},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def submit(self, count: int, command: str, *options: str) -> str:
        """An array job of the person; its name."""
        more = ("--array", f"1-{count}", *options)
        return self.person("submit", *more, "--", "sh", "-c", command).stdout.strip()

    def finish(self, job: str) -> Counter[str]:
        """The lines that its subtasks printed, when it has ended well."""
        self.person("wait", job, "--timeout", f"{SECONDS:.0f}s")
        return Counter(self.person("result", job).stdout.splitlines())

    def count_of(self, job: str, name: str) -> int:
        """``done``, ``lost``, ``superseded``, ... of a job, as its person is told."""
        told = msgspec.json.decode(self.person("status", job, "--json").stdout)
        return int(told["jobs"][0][name])

    def until_done(self, job: str, count: int) -> None:
        """Until so many of its subtasks are."""
        self.broker.until(f"{count} of {job}", lambda: self.count_of(job, "done") >= count)

    def bill(self, job: str) -> Bill:
        """Receipts, proven one by one in the ledger's epochs, are what was charged; the books too.

        Raises:
            AssertionError: they differ, or the books are not in order.
        """
        proof = msgspec.json.decode(self.person("audit", "prove", job, "--wait", "--json").stdout)
        assert not proof["faults"], proof
        told = msgspec.json.decode(self.person("usage", job, "--by", "node", "--json").stdout)
        charged = sum(row["amount_ucredits"] for row in told["rows"])
        assert charged == proof["amount_ucredits"], (told, proof)
        audited = self.broker.shell(f"cd /; {AUDIT}").stdout
        assert "is in order: every row from the first" in audited, audited
        done = sum(row["subtasks"] - row["failed"] for row in told["rows"])
        return Bill(done, proof["receipts"], charged, len(told["rows"]))

    # ------------------------------------------------------------ the operator

    def rows(self) -> list[dict[str, Any]]:
        """The workers that are in the grid now, as the operator is told."""
        told = msgspec.json.decode(self.broker.gristmill("node", "list", "--json").stdout)
        rows: list[dict[str, Any]] = told["workers"]
        return rows

    def nodes(self) -> dict[str, str]:
        """Each of them with its state."""
        return {row["name"]: row["state"] for row in self.rows()}

    def is_active(self, host: FleetHost, unit: str) -> bool:
        """Whether it serves."""
        return host.property_of(unit, "ActiveState") == "active"


def lines_of(count: int) -> Counter[str]:
    """What an array of so many prints, each its index."""
    return Counter(str(index) for index in range(count))


def behind(text: str, words: str) -> str:
    """The rest of the line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(words)]
    return line.removeprefix(words)
