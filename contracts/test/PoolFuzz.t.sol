// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {WorkPool} from "../src/WorkPool.sol";
import {PoolCase, Tree} from "./PoolCase.t.sol";

/// @dev Trees of any size and shape: any workers, in any order, claim exactly their due.
contract PoolFuzzTest is PoolCase {
    uint256 private constant MOST = 40;

    function worker(uint256 i) private pure returns (address) {
        return address(uint160(0x100000 + i));
    }

    function any(uint256 seed, string memory what, uint256 i) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(seed, what, i)));
    }

    /// @dev What `count` workers earned; some nothing at all.
    function earnings(uint256 seed, uint256 count)
        private
        pure
        returns (address[] memory workers, uint128[] memory amounts)
    {
        workers = new address[](count);
        amounts = new uint128[](count);
        for (uint256 i; i < count; ++i) {
            workers[i] = worker(i);
            amounts[i] = uint128(any(seed, "amount", i) % 1_000);
        }
    }

    /// @dev Claim for the one or refuse it for nothing earned; then refuse a second time.
    function claimOnce(uint256 i, uint128 amount, bytes32[] memory path) private {
        address who = worker(i);
        uint256 before = token.balanceOf(who);
        uint128 had = pool.claimed(who);
        if (amount > had) pool.claim(who, amount, path);
        same("exactly its due", token.balanceOf(who), before + amount - had);
        same("claimed", pool.claimed(who), amount);
        bytes memory why = abi.encodeWithSelector(WorkPool.NothingNew.selector, who, amount);
        claimRefused(who, amount, path, why);
    }

    function testFuzz_any_of_the_workers_in_any_order(uint256 seed) public {
        uint256 count = bound(any(seed, "count", 0), 1, MOST);
        (address[] memory workers, uint128[] memory amounts) = earnings(seed, count);
        uint128 total = sum(amounts);
        fund(total);
        bytes32[] memory nodes = Tree.build(workers, amounts);
        open(nodes[0], total);
        uint256 paid;
        uint256 offset = any(seed, "offset", 0) % count;
        for (uint256 k; k < count; ++k) {
            uint256 i = (k * 41 + offset) % count; // 41 is prime and above MOST: each comes once
            if (any(seed, "comes", i) % 3 == 0) continue;
            claimOnce(i, amounts[i], Tree.proof(nodes, i));
            paid += amounts[i];
        }
        same("claimedTotal", pool.claimedTotal(), paid);
        same("the rest is there", token.balanceOf(address(pool)), total - paid);
        same("for them", pool.claimMany(workers, amounts, proofs(nodes)), total - paid);
    }

    /// @dev Some claim after each epoch, some after all: each has in the end what it earned.
    function testFuzz_epochs(uint256 seed) public {
        uint256 count = bound(any(seed, "count", 1), 1, 12);
        (address[] memory workers, uint128[] memory amounts) = earnings(seed, count);
        bytes32[] memory nodes;
        for (uint256 epoch; epoch < 4; ++epoch) {
            for (uint256 i; i < count; ++i) {
                amounts[i] += uint128(any(seed, "more", epoch * MOST + i) % 500);
            }
            uint128 total = sum(amounts);
            token.mint(address(pool), total - pool.funds());
            nodes = Tree.build(workers, amounts);
            open(nodes[0], total);
            for (uint256 i; i < count; ++i) {
                if (any(seed, "comes", epoch * MOST + i) % 2 == 0) {
                    claimOnce(i, amounts[i], Tree.proof(nodes, i));
                }
            }
        }
        pool.claimMany(workers, amounts, proofs(nodes));
        for (uint256 i; i < count; ++i) {
            same("what it earned", token.balanceOf(worker(i)), amounts[i]);
        }
        same("pool", token.balanceOf(address(pool)), 0);
    }

    /// @dev Whatever the leaves say, a root pays its own total at most.
    function testFuzz_a_wrong_root_pays_its_total_at_most(uint256 seed, uint128 total) public {
        uint256 count = bound(any(seed, "count", 2), 1, MOST);
        (address[] memory workers, uint128[] memory amounts) = earnings(seed, count);
        total = uint128(bound(total, 0, sum(amounts)));
        fund(1_000_000);
        bytes32[] memory nodes = Tree.build(workers, amounts);
        open(nodes[0], total);
        for (uint256 i; i < count; ++i) {
            if (amounts[i] == 0) continue;
            uint256 left = total - pool.claimedTotal();
            if (amounts[i] > left) {
                claimRefused(
                    workers[i],
                    amounts[i],
                    Tree.proof(nodes, i),
                    abi.encodeWithSelector(
                        WorkPool.TotalReached.selector, workers[i], amounts[i], left
                    )
                );
            } else {
                pool.claim(workers[i], amounts[i], Tree.proof(nodes, i));
            }
        }
        check("no more than the total", pool.claimedTotal() <= total);
        same("the rest", token.balanceOf(address(pool)), 1_000_000 - pool.claimedTotal());
    }

    function testFuzz_a_leaf_that_is_not_in_the_tree(uint256 seed, address who, uint128 amount)
        public
    {
        uint256 count = bound(any(seed, "count", 3), 1, MOST);
        (address[] memory workers, uint128[] memory amounts) = earnings(seed, count);
        uint256 i = any(seed, "near", 0) % count;
        vm.assume(amount != 0 && who != address(pool));
        vm.assume(who != workers[i] || amount != amounts[i]);
        fund(1_000_000);
        bytes32[] memory nodes = Tree.build(workers, amounts);
        open(nodes[0], 1_000_000);
        bytes memory why = abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 1);
        claimRefused(who, amount, Tree.proof(nodes, i), why);
        amount = amounts[i] + 1; // right but for one unit
        claimRefused(workers[i], amount, Tree.proof(nodes, i), why);
    }

    function testFuzz_what_totals_are_accepted(uint128 first, uint128 next, uint128 had) public {
        first = uint128(bound(first, 0, CAP));
        had = uint128(bound(had, first, 4 * uint256(CAP)));
        fund(had);
        open(keccak256("first"), first);
        bytes memory why;
        if (next < first) {
            why = abi.encodeWithSelector(WorkPool.TotalFalls.selector, next, first);
        } else if (next - first > CAP) {
            why = abi.encodeWithSelector(WorkPool.AboveCap.selector, next, uint256(first) + CAP);
        } else if (next > had) {
            why = abi.encodeWithSelector(WorkPool.AboveFunds.selector, next, had);
        }
        if (why.length != 0) {
            postRefused(keccak256("next"), next, why);
        } else {
            open(keccak256("next"), next);
            (,, uint128 total) = pool.current();
            same("total", total, next);
        }
    }

    /// @dev At the end of the numbers nothing overflows unseen.
    function test_the_largest_amounts() public {
        uint128 most = type(uint128).max;
        pool = newPool(most);
        fund(most);
        bytes32[] memory none;
        open(pool.leafOf(ANN, most), most);
        pool.claim(ANN, most, none);
        same("ANN", token.balanceOf(ANN), most);
        fund(most);
        open(pool.leafOf(ANN, most), most); // it can go on, but not grow
        bytes memory why = abi.encodeWithSelector(WorkPool.NothingNew.selector, ANN, most);
        claimRefused(ANN, most, none, why);
    }
}
