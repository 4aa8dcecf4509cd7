// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

import {DevToken} from "../src/DevToken.sol";
import {WorkPool} from "../src/WorkPool.sol";
import {Base} from "./Vm.sol";

/// @dev Trees as OpenZeppelin's JavaScript builds them (`nodes`, the root first), with nothing of
/// the contract's own code.
library Tree {
    /// @dev In scratch space: a hundred thousand of them must not fill the memory.
    function leaf(address worker, uint128 cumulative) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            mstore(0, worker)
            mstore(32, cumulative)
            mstore(0, keccak256(0, 64))
            hash := keccak256(0, 32)
        }
    }

    function build(bytes32[] memory leaves) internal pure returns (bytes32[] memory nodes) {
        uint256 count = leaves.length;
        nodes = new bytes32[](2 * count - 1);
        for (uint256 i; i < count; ++i) {
            nodes[count - 1 + i] = leaves[i];
        }
        for (uint256 i = count - 1; i > 0; --i) {
            nodes[i - 1] = Hashes.commutativeKeccak256(nodes[2 * i - 1], nodes[2 * i]);
        }
    }

    function build(address[] memory workers, uint128[] memory cumulatives)
        internal
        pure
        returns (bytes32[] memory nodes)
    {
        bytes32[] memory leaves = new bytes32[](workers.length);
        for (uint256 i; i < leaves.length; ++i) {
            leaves[i] = leaf(workers[i], cumulatives[i]);
        }
        return build(leaves);
    }

    /// @dev Of the leaf that was given as number `index`.
    function proof(bytes32[] memory nodes, uint256 index)
        internal
        pure
        returns (bytes32[] memory path)
    {
        uint256 node = (nodes.length + 1) / 2 - 1 + index;
        uint256 depth;
        for (uint256 i = node; i > 0; i = (i - 1) / 2) {
            ++depth;
        }
        path = new bytes32[](depth);
        for (uint256 i; i < depth; ++i) {
            path[i] = nodes[node % 2 == 0 ? node - 1 : node + 1];
            node = (node - 1) / 2;
        }
    }
}

/// @dev What all tests of ours say when something is wrong.
abstract contract Checks is Base {
    error Differs(string what, uint256 is_, uint256 shouldBe);
    error Wrong(string what);

    function same(string memory what, uint256 is_, uint256 shouldBe) internal pure {
        if (is_ != shouldBe) revert Differs(what, is_, shouldBe);
    }

    function same(string memory what, address is_, address shouldBe) internal pure {
        same(what, uint160(is_), uint160(shouldBe));
    }

    function same(string memory what, bytes32 is_, bytes32 shouldBe) internal pure {
        same(what, uint256(is_), uint256(shouldBe));
    }

    function check(string memory what, bool holds) internal pure {
        if (!holds) revert Wrong(what);
    }

    function sum(uint128[] memory amounts) internal pure returns (uint128 total) {
        for (uint256 i; i < amounts.length; ++i) {
            total += amounts[i];
        }
    }
}

/// @dev A token of 18 decimals, as most are.
contract Coarse {
    uint8 public constant decimals = 18;
}

/// @dev A pool with money, its keys, and roots that are posted in one line.
abstract contract PoolCase is Checks {
    uint64 internal constant WINDOW = 1 days;
    uint128 internal constant CAP = 1_000_000;
    bytes32 internal constant RECEIPTS = keccak256("receipts");
    bytes32 internal constant LIST = keccak256("list");

    address internal constant COORDINATOR = address(0xC0);
    address internal constant GUARDIAN = address(0x9A);
    address internal constant STRANGER = address(0x57);
    address internal constant ANN = address(0xA1);
    address internal constant BEN = address(0xB2);
    address internal constant CYD = address(0xC3);

    DevToken internal token;
    WorkPool internal pool;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        token = new DevToken();
        pool = newPool(CAP);
    }

    function newPool(uint128 cap) internal returns (WorkPool) {
        return new WorkPool(token, COORDINATOR, GUARDIAN, WINDOW, cap);
    }

    /// @dev As `ComputeRental.withdrawTo(pool)` does: a plain transfer.
    function fund(uint256 amount) internal {
        token.mint(address(pool), amount);
    }

    function post(bytes32 root, uint128 total) internal returns (uint64) {
        vm.prank(COORDINATOR);
        return pool.post(root, RECEIPTS, LIST, total);
    }

    /// @dev Post a root and wait until it is claimed from.
    function open(bytes32 root, uint128 total) internal {
        post(root, total);
        vm.warp(block.timestamp + WINDOW);
    }

    function postRefused(bytes32 root, uint128 total, bytes memory why) internal {
        vm.prank(COORDINATOR);
        vm.expectRevert(why);
        pool.post(root, RECEIPTS, LIST, total);
    }

    function claimRefused(address worker, uint128 amount, bytes32[] memory path, bytes memory why)
        internal
    {
        vm.expectRevert(why);
        pool.claim(worker, amount, path);
    }

    /// @dev Three workers' tree.
    function three(uint128 ann, uint128 ben, uint128 cyd)
        internal
        pure
        returns (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes)
    {
        workers = new address[](3);
        amounts = new uint128[](3);
        (workers[0], workers[1], workers[2]) = (ANN, BEN, CYD);
        (amounts[0], amounts[1], amounts[2]) = (ann, ben, cyd);
        nodes = Tree.build(workers, amounts);
    }

    function proofs(bytes32[] memory nodes) internal pure returns (bytes32[][] memory paths) {
        paths = new bytes32[][]((nodes.length + 1) / 2);
        for (uint256 i; i < paths.length; ++i) {
            paths[i] = Tree.proof(nodes, i);
        }
    }
}
