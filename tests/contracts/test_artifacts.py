"""The artifacts are what contracts/src compiles to, byte for byte, wherever the checkout lies."""

import hashlib
import json
import pathlib
import shutil
import subprocess

import pytest
from chain_rig import CONTRACTS, FORGE

from gristmill.contracts.artifact import NAMES, load

ARTIFACTS = CONTRACTS / "artifacts"
NEXT = "next: node contracts/tools/build.mjs"


def build(
    contracts: pathlib.Path, *options: str, cwd: pathlib.Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the compiler of a checkout."""
    if not (CONTRACTS / "node_modules" / "solc").is_dir():
        pytest.skip("solc is not installed: npm ci --ignore-scripts --prefix contracts")
    command = ["node", str(contracts / "tools" / "build.mjs"), *options]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def checkout(folder: pathlib.Path) -> pathlib.Path:
    """What the compiler reads, in another place; npm's packages by a link."""
    contracts = folder / "contracts"
    contracts.mkdir(parents=True)
    for name in ("src", "tools", "artifacts"):
        shutil.copytree(CONTRACTS / name, contracts / name)
    shutil.copy(CONTRACTS / "package.json", contracts)
    (contracts / "node_modules").symlink_to(CONTRACTS / "node_modules")
    return contracts


@pytest.mark.parametrize("name", NAMES)
def test_our_sources_are_those_it_was_made_of(name: str) -> None:
    sources = load(name).sources
    ours = {path: digest for path, digest in sources.items() if path.startswith("src/")}
    assert f"src/{name}.sol" in ours
    now = {path: hashlib.sha256((CONTRACTS / path).read_bytes()).hexdigest() for path in ours}
    assert now == ours, f"{name}.sol has changed since its artifact was made; {NEXT}"


def test_every_contract_of_ours_has_one() -> None:
    assert sorted(path.stem for path in ARTIFACTS.iterdir()) == sorted(NAMES)
    abstract = {"FeeWallet"}
    assert {path.stem for path in (CONTRACTS / "src").glob("*.sol")} - abstract == set(NAMES)


def test_they_name_no_place() -> None:
    for name in NAMES:
        artifact = load(name)
        assert artifact.compiler.startswith("0.8.37+")
        assert all(path.startswith(("src/", "node_modules/@openzeppelin/"))
                   for path in artifact.sources)  # fmt: skip


def test_compiled_again_they_are_the_same() -> None:
    done = build(CONTRACTS, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(NAMES)} artifacts are what contracts/src compiles to\n"


@pytest.mark.slow
def test_the_place_of_the_checkout_does_not_matter(tmp_path: pathlib.Path) -> None:
    places = [checkout(tmp_path / "one"), checkout(tmp_path / "another place" / "deeper")]
    for contracts in places:
        shutil.rmtree(contracts / "artifacts")
        done = build(contracts, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in NAMES:
            made = (contracts / "artifacts" / f"{name}.json").read_bytes()
            assert made == (ARTIFACTS / f"{name}.json").read_bytes(), (contracts, name)


def test_what_differs_is_named(tmp_path: pathlib.Path) -> None:
    contracts = checkout(tmp_path)
    token = contracts / "artifacts" / "DevToken.json"
    told = json.loads(token.read_text())
    told["bytecode"] = told["bytecode"][:-2] + "00"
    token.write_text(json.dumps(told))
    (contracts / "artifacts" / "WorkPool.json").unlink()
    (contracts / "artifacts" / "Old.json").write_text("{}")
    wallet = contracts / "src" / "FeeWallet.sol"
    wallet.write_text(wallet.read_text().replace("FEE_BPS = 300", "FEE_BPS = 301"))
    done = build(contracts, "--check")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == NEXT
    assert "artifacts/DevToken.json differs: bytecode" in lines
    assert "artifacts/WorkPool.json is not there" in lines
    assert "artifacts/Old.json is no contract's" in lines
    rental = next(line for line in lines if "ComputeRental" in line)
    assert rental.endswith("differs: bytecode, deployed, sources (src/FeeWallet.sol)")


@pytest.mark.slow
def test_the_code_is_forges_to_the_last_byte(tmp_path: pathlib.Path) -> None:
    if not FORGE.is_file():
        pytest.skip("forge is not installed: npm ci --ignore-scripts --prefix contracts")
    out = tmp_path / "out"
    command = [str(FORGE), "build", "src", "--out", str(out), "--cache-path", str(tmp_path / "c")]
    done = subprocess.run(
        command, cwd=CONTRACTS, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        made = json.loads((out / f"{name}.sol" / f"{name}.json").read_text())
        artifact = load(name)
        assert made["bytecode"]["object"] == f"0x{artifact.bytecode.hex()}", name
        assert made["deployedBytecode"]["object"] == f"0x{artifact.deployed.hex()}", name
