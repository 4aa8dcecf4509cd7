// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PoolCase, Tree} from "./PoolCase.t.sol";

/// @dev What operations cost who sends them, as a receipt would say (`--isolate`: each call is a
/// transaction). tests/contracts/gas.py compares the figures with contracts/gas-snapshot.
contract PoolGasTest is PoolCase {
    uint256 private constant MANY = 100;

    function worker(uint256 i) private pure returns (address) {
        return address(uint160(0x100000 + i));
    }

    /// @dev `count` workers, of whom number i earned `each` + i.
    function tree(uint256 count, uint128 each)
        private
        pure
        returns (bytes32[] memory nodes, uint128 total)
    {
        bytes32[] memory leaves = new bytes32[](count);
        for (uint256 i; i < count; ++i) {
            uint128 amount = each + uint128(i);
            leaves[i] = Tree.leaf(worker(i), amount);
            total += amount;
        }
        nodes = Tree.build(leaves);
    }

    function note(string memory name) private {
        vm.snapshotGasLastCall("WorkPool", name);
    }

    /// @dev The third post of a pool: two roots are there, as ever after.
    function posted(uint256 leaves, string memory name) private {
        pool = newPool(1e18);
        token.mint(address(pool), 1e18);
        open(keccak256("first"), 1);
        open(keccak256("second"), 2);
        (bytes32[] memory nodes, uint128 total) = tree(leaves, 1);
        post(nodes[0], total);
        note(name);
    }

    function test_gas_post() public {
        pool = newPool(1e18);
        token.mint(address(pool), 1e18);
        post(keccak256("root"), 1);
        note("post, the first of all");
        posted(10, "post, 10 leaves");
        posted(1_000, "post, 1000 leaves");
        posted(100_000, "post, 100000 leaves");
        vm.prank(GUARDIAN);
        pool.veto(3);
        note("veto");
    }

    function test_gas_claim() public {
        pool = newPool(1e18);
        token.mint(address(pool), 1e18);
        (bytes32[] memory nodes, uint128 total) = tree(1_000, 100);
        open(nodes[0], total);
        pool.claim(worker(1), 101, Tree.proof(nodes, 1));
        note("claim, the pool's first");
        pool.claim(worker(2), 102, Tree.proof(nodes, 2));
        note("claim, a worker's first, 1000 leaves");
        (nodes, total) = tree(1_000, 200);
        open(nodes[0], total);
        pool.claim(worker(2), 202, Tree.proof(nodes, 2));
        note("claim, a later one, 1000 leaves");
        (nodes, total) = tree(100_000, 300);
        open(nodes[0], total);
        pool.claim(worker(2), 302, Tree.proof(nodes, 2));
        note("claim, a later one, 100000 leaves");
    }

    function test_gas_claimMany() public {
        pool = newPool(1e18);
        token.mint(address(pool), 1e18);
        (bytes32[] memory nodes, uint128 total) = tree(1_000, 100);
        open(nodes[0], total);
        claimAll(nodes, 100, "claimMany of 100, first ones");
        (nodes, total) = tree(1_000, 200);
        open(nodes[0], total);
        claimAll(nodes, 200, "claimMany of 100, later ones");
        claimAll(nodes, 200, "claimMany of 100, nothing new");
    }

    function claimAll(bytes32[] memory nodes, uint128 each, string memory name) private {
        address[] memory workers = new address[](MANY);
        uint128[] memory amounts = new uint128[](MANY);
        bytes32[][] memory paths = new bytes32[][](MANY);
        for (uint256 i; i < MANY; ++i) {
            uint256 index = 10 + i;
            (workers[i], amounts[i]) = (worker(index), each + uint128(index));
            paths[i] = Tree.proof(nodes, index);
        }
        pool.claimMany(workers, amounts, paths);
        note(name);
    }
}
