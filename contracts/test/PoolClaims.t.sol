// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {WorkPool} from "../src/WorkPool.sol";
import {PoolCase, Tree} from "./PoolCase.t.sol";

/// @dev Who is paid what, with what proof, once.
contract PoolClaimsTest is PoolCase {
    bytes32[] private none;

    function test_a_worker_is_paid_whoever_asks() public {
        fund(600);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        vm.expectEmit();
        emit WorkPool.Claimed(BEN, 200, 200);
        vm.prank(STRANGER);
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        same("paid", token.balanceOf(BEN), 200);
        same("the asker", token.balanceOf(STRANGER), 0);
        same("claimed", pool.claimed(BEN), 200);
        same("claimedTotal", pool.claimedTotal(), 200);
        same("pool", token.balanceOf(address(pool)), 400);
    }

    function test_who_missed_epochs_claims_them_all_at_once() public {
        fund(1_000);
        (,, bytes32[] memory nodes) = three(10, 20, 30);
        open(nodes[0], 60);
        pool.claim(ANN, 10, Tree.proof(nodes, 0));
        (,, nodes) = three(20, 50, 30);
        open(nodes[0], 100);
        (,, nodes) = three(30, 90, 80);
        open(nodes[0], 200);
        vm.expectEmit();
        emit WorkPool.Claimed(BEN, 90, 90);
        pool.claim(BEN, 90, Tree.proof(nodes, 1));
        vm.expectEmit();
        emit WorkPool.Claimed(ANN, 20, 30);
        pool.claim(ANN, 30, Tree.proof(nodes, 0));
        same("BEN", token.balanceOf(BEN), 90);
        same("ANN", token.balanceOf(ANN), 30);
    }

    function test_nothing_is_paid_twice() public {
        fund(600);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        bytes memory why = abi.encodeWithSelector(WorkPool.NothingNew.selector, BEN, 200);
        claimRefused(BEN, 200, Tree.proof(nodes, 1), why);
        same("paid", token.balanceOf(BEN), 200);
    }

    function test_nothing_before_the_first_root_or_while_it_waits() public {
        fund(600);
        bytes memory why = abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 0);
        claimRefused(ANN, 1, none, why);
        post(pool.leafOf(ANN, 100), 100);
        vm.warp(block.timestamp + WINDOW - 1);
        claimRefused(ANN, 100, none, why);
        vm.warp(block.timestamp + 1);
        pool.claim(ANN, 100, none);
    }

    function test_a_vetoed_root_is_never_claimed_from() public {
        fund(600);
        post(pool.leafOf(ANN, 100), 100);
        vm.prank(GUARDIAN);
        pool.veto(1);
        vm.warp(block.timestamp + 10 * WINDOW);
        claimRefused(ANN, 100, none, abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 0));
    }

    function test_a_forged_claim_is_refused() public {
        fund(10_000);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        bytes memory why = abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 1);
        claimRefused(BEN, 201, Tree.proof(nodes, 1), why); // more than earned
        claimRefused(BEN, 199, Tree.proof(nodes, 1), why); // less
        claimRefused(BEN, 100, Tree.proof(nodes, 0), why); // somebody else's
        claimRefused(BEN, 200, Tree.proof(nodes, 0), why); // somebody else's proof
        claimRefused(STRANGER, 200, Tree.proof(nodes, 1), why);
        claimRefused(BEN, 200, none, why);
        bytes32[] memory longer = new bytes32[](3);
        claimRefused(BEN, 200, longer, why);
    }

    function test_a_proof_of_the_last_root_is_no_proof_of_the_next() public {
        fund(10_000);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        bytes32[] memory old = Tree.proof(nodes, 1);
        (,, nodes) = three(100, 250, 300);
        open(nodes[0], 650);
        claimRefused(BEN, 200, old, abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 2));
    }

    /// @dev What a thief would need: an inner node that reads as a leaf. Nodes are hashes of 64
    /// bytes like abi.encode(worker, cumulative), but a leaf is the hash of such a hash.
    function test_an_inner_node_is_no_leaf() public {
        fund(10_000);
        bytes32 left = bytes32(uint256(uint160(STRANGER))); // a "hash" that is an address
        bytes32 right = bytes32(uint256(5_000)); // and one that is an amount
        bytes32 inner = keccak256(abi.encode(STRANGER, uint128(5_000)));
        same("it would", keccak256(abi.encodePacked(left, right)), inner);
        open(inner, 5_000);
        bytes memory why = abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 1);
        claimRefused(STRANGER, 5_000, none, why);
    }

    function test_the_leaf_is_openzeppelins() public view {
        bytes32 once = keccak256(abi.encode(ANN, uint256(77)));
        same("leaf", pool.leafOf(ANN, 77), keccak256(abi.encodePacked(once)));
        same("tree", pool.leafOf(ANN, 77), Tree.leaf(ANN, 77));
        // Made with js-sha3: a leaf is what it is in any language.
        same(
            "known",
            pool.leafOf(0x00000000000000000000000000000000000000A1, 1_000_000),
            0x2ad57e4367f940132f4ebae5fcafa240a7943058530b199a522ebb2e6e2af138
        );
    }

    /// @dev A worker in two leaves gets the larger, not the sum: who builds trees merges first.
    function test_two_leaves_of_one_worker_are_not_added_up() public {
        fund(10_000);
        address[] memory workers = new address[](3);
        uint128[] memory amounts = new uint128[](3);
        (workers[0], workers[1], workers[2]) = (ANN, ANN, BEN);
        (amounts[0], amounts[1], amounts[2]) = (100, 300, 200);
        bytes32[] memory nodes = Tree.build(workers, amounts);
        open(nodes[0], 600);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        pool.claim(ANN, 300, Tree.proof(nodes, 1));
        bytes memory why = abi.encodeWithSelector(WorkPool.NothingNew.selector, ANN, 300);
        claimRefused(ANN, 100, Tree.proof(nodes, 0), why);
        same("ANN", token.balanceOf(ANN), 300);
    }

    function test_leaves_beyond_their_total_are_not_paid() public {
        fund(10_000);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 350);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        bytes4 why = WorkPool.TotalReached.selector;
        claimRefused(CYD, 300, Tree.proof(nodes, 2), abi.encodeWithSelector(why, CYD, 300, 250));
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        claimRefused(CYD, 300, Tree.proof(nodes, 2), abi.encodeWithSelector(why, CYD, 300, 50));
        post(nodes[0], 600); // the coordinator puts it right
        vm.warp(block.timestamp + WINDOW);
        pool.claim(CYD, 300, Tree.proof(nodes, 2));
        same("claimedTotal", pool.claimedTotal(), 600);
    }

    /// @dev It would pay itself: more claimed, no less held, and `funds` would count it twice.
    function test_the_pool_is_no_worker() public {
        fund(500);
        open(pool.leafOf(address(pool), 500), 500);
        bytes memory why = abi.encodeWithSelector(WorkPool.PoolAsWorker.selector);
        claimRefused(address(pool), 500, none, why);
        same("funds", pool.funds(), 500);
    }

    function test_worker_zero_is_refused_by_the_token() public {
        fund(500);
        open(pool.leafOf(address(0), 500), 500);
        bytes4 why = IERC20Errors.ERC20InvalidReceiver.selector;
        claimRefused(address(0), 500, none, abi.encodeWithSelector(why, address(0)));
        same("claimedTotal", pool.claimedTotal(), 0);
    }

    // ClaimMany.

    function test_many_are_paid_at_once_and_who_has_nothing_new_is_passed_over() public {
        fund(600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        bytes32[][] memory paths = proofs(nodes);
        vm.expectEmit();
        emit WorkPool.Claimed(ANN, 100, 100);
        vm.expectEmit();
        emit WorkPool.Claimed(CYD, 300, 300);
        vm.prank(STRANGER);
        same("paid", pool.claimMany(workers, amounts, paths), 400);
        same("ANN", token.balanceOf(ANN), 100);
        same("BEN", token.balanceOf(BEN), 200);
        same("CYD", token.balanceOf(CYD), 300);
        same("claimedTotal", pool.claimedTotal(), 600);
        same("paid again", pool.claimMany(workers, amounts, paths), 0);
        same("pool", token.balanceOf(address(pool)), 0);
    }

    function test_a_worker_twice_in_one_call_is_paid_once() public {
        fund(600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        bytes32[][] memory paths = proofs(nodes);
        (workers[2], amounts[2], paths[2]) = (ANN, 100, paths[0]);
        same("paid", pool.claimMany(workers, amounts, paths), 300);
        same("ANN", token.balanceOf(ANN), 100);
    }

    function test_a_bad_proof_among_many_is_named_and_nothing_is_paid() public {
        fund(600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        bytes32[][] memory paths = proofs(nodes);
        amounts[2] = 301;
        vm.expectRevert(abi.encodeWithSelector(WorkPool.BadProof.selector, 2, 1));
        pool.claimMany(workers, amounts, paths);
        same("ANN", token.balanceOf(ANN), 0);
    }

    function test_lists_of_unequal_length_are_refused() public {
        fund(600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        bytes32[][] memory paths = proofs(nodes);
        bytes4 why = WorkPool.LengthMismatch.selector;
        vm.expectRevert(abi.encodeWithSelector(why, 3, 2, 3));
        pool.claimMany(workers, new uint128[](2), paths);
        vm.expectRevert(abi.encodeWithSelector(why, 3, 3, 4));
        pool.claimMany(workers, amounts, new bytes32[][](4));
        vm.expectRevert(abi.encodeWithSelector(why, 0, 3, 3));
        pool.claimMany(new address[](0), amounts, paths);
        same("of none", pool.claimMany(new address[](0), new uint128[](0), new bytes32[][](0)), 0);
    }
}
