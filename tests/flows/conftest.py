"""The rig of the flows: one host, broker, ledger, store, three workers; all of it real."""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grid_rig import grids_of_a_test

from gristmill.cli.grid import WORKER_GRACE_S, Grid
from gristmill.client import Client

_HERE = pathlib.Path(__file__).parent
for rigs in (_HERE, _HERE.parent / "settlement"):  # those of these rows, and the settlement's
    sys.path.insert(0, str(rigs))


@pytest.fixture(scope="session")
def grid() -> Iterator[Grid]:
    """Shared by the rows that break nothing: three workers of one slot."""
    with Grid.temporary(workers=3, slots=1) as grid:
        yield grid


@pytest.fixture
def client(grid: Grid) -> Iterator[Client]:
    """A client of the shared grid."""
    with Client(grid.address) as client:
        yield client


@pytest.fixture
def own_grid() -> Iterator[Callable[..., Grid]]:
    """Grids of this test alone, for rows that break things."""
    yield from grids_of_a_test(WORKER_GRACE_S)


@pytest.fixture(scope="session")
def settling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ``settle_stage.Stage``, started by the first row that asks for it."""
    from settle_stage import settle_stage

    with settle_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture
def stage(settling: Any) -> Iterator[Any]:
    """The same for each row, with nothing under way: before, and again at its end."""
    yield settling
    settling.again()
    settling.idle()


@pytest.fixture(scope="session")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ``contract_shop.Shop``, deployed by the first row that asks for it."""
    from contract_shop import contract_shop

    with contract_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def shop(contracts: Any) -> Iterator[Any]:
    """The same for each row, its chain as it was."""
    from chain_rig import taken_back

    with taken_back(contracts.rig):
        contracts.rig.mine()  # what was taken back does not turn the chain's clock back
        yield contracts
