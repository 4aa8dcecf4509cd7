// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {DevToken} from "../src/DevToken.sol";
import {WorkPool} from "../src/WorkPool.sol";
import {
    BlacklistToken,
    FalseToken,
    FeeOnTransferToken,
    ReentrantToken,
    SilentToken
} from "./HostileTokens.sol";
import {PoolCase, Tree} from "./PoolCase.t.sol";

/// @dev What those with keys can do, and what tokens can: docs/contracts/pool.md names these tests.
contract PoolThreatsTest is PoolCase {
    address private constant THIEF = address(0xBAD);
    address private constant COLD = address(0xC01D);
    bytes32[] private none;

    function poolOf(address token_) private {
        token = DevToken(token_);
        pool = newPool(CAP);
    }

    // Keys.

    /// @dev Theft without a veto: what is not yet claimed, and the cap, in each window.
    function test_a_stolen_key_gets_the_unclaimed_and_the_cap_in_a_window() public {
        fund(10 * CAP);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));

        uint128 most = 500 + CAP;
        open(pool.leafOf(THIEF, most), 600 + CAP);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.BadProof.selector, 0, 2));
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        pool.claim(THIEF, most, none);
        same("stolen", token.balanceOf(THIEF), most);
        same("left", token.balanceOf(address(pool)), 9 * CAP - 600);
        uint256 from = block.timestamp;
        open(pool.leafOf(THIEF, most + CAP), 600 + 2 * CAP);
        same("a window later", block.timestamp, from + WINDOW);
        pool.claim(THIEF, most + CAP, none);
        same("stolen", token.balanceOf(THIEF), most + CAP);
    }

    /// @dev While a bad root waits the last one is claimed from: then the cap is all that is lost.
    function test_claiming_for_all_while_a_bad_root_waits_leaves_it_the_cap() public {
        fund(10 * CAP);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        post(pool.leafOf(THIEF, CAP + 600), 600 + CAP);
        bytes32[][] memory paths = proofs(nodes);
        vm.prank(STRANGER);
        pool.claimMany(workers, amounts, paths);
        vm.warp(block.timestamp + WINDOW);
        claimRefused(
            THIEF,
            CAP + 600,
            none,
            abi.encodeWithSelector(WorkPool.TotalReached.selector, THIEF, CAP + 600, CAP)
        );
    }

    /// @dev A hot key is out with one transaction of a cold one, and its last root with a veto.
    function test_the_owner_ends_a_theft() public {
        fund(10 * CAP);
        vm.prank(COORDINATOR);
        pool.transferOwnership(COLD); // as is done on the first day
        vm.prank(COLD);
        pool.acceptOwnership();
        post(pool.leafOf(THIEF, CAP), CAP); // the thief's, with the coordinator's key
        vm.startPrank(COLD);
        pool.appoint(STRANGER);
        pool.veto(1); // its guardian sleeps
        vm.stopPrank();
        vm.warp(block.timestamp + WINDOW);
        postRefused(
            pool.leafOf(THIEF, CAP),
            CAP,
            abi.encodeWithSelector(WorkPool.NotAllowed.selector, COORDINATOR, STRANGER)
        );
        bytes32 root = pool.leafOf(ANN, 100);
        vm.prank(STRANGER);
        pool.post(root, RECEIPTS, LIST, 100);
        vm.warp(block.timestamp + WINDOW);
        pool.claim(ANN, 100, none);
        same("stolen", token.balanceOf(THIEF), 0);
    }

    function test_without_a_coordinator_the_last_root_stays_claimable() public {
        fund(600);
        (,, bytes32[] memory nodes) = three(100, 200, 300);
        post(nodes[0], 600);
        vm.prank(COORDINATOR);
        pool.appoint(address(0));
        vm.warp(block.timestamp + 3650 days);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        pool.claim(BEN, 200, Tree.proof(nodes, 1));
        pool.claim(CYD, 300, Tree.proof(nodes, 2));
        same("pool", token.balanceOf(address(pool)), 0);
    }

    function test_a_guardian_who_vetoes_for_ever_is_replaced() public {
        fund(600);
        vm.prank(COORDINATOR);
        pool.proposeGuardian(STRANGER);
        uint256 end = block.timestamp + pool.GUARDIAN_DELAY();
        bytes32 root = pool.leafOf(ANN, 100);
        uint64 posts;
        while (block.timestamp < end) {
            uint64 number = post(root, 100);
            vm.prank(GUARDIAN);
            pool.veto(number);
            vm.warp(block.timestamp + WINDOW);
            ++posts;
        }
        same("vetoes, one a window", posts, 30);
        vm.prank(STRANGER);
        pool.acceptGuardian();
        uint64 last = post(root, 100);
        vm.prank(GUARDIAN);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.NotAllowed.selector, GUARDIAN, STRANGER));
        pool.veto(last);
        vm.warp(block.timestamp + WINDOW);
        pool.claim(ANN, 100, none);
    }

    // Tokens.

    function barred(address worker) private returns (bytes32[] memory nodes) {
        BlacklistToken hostile = new BlacklistToken();
        poolOf(address(hostile));
        fund(600);
        (,, nodes) = three(100, 200, 300);
        open(nodes[0], 600);
        hostile.blacklist(worker, true);
    }

    function test_a_barred_worker_does_not_hold_up_the_others() public {
        bytes32[] memory nodes = barred(BEN);
        (address[] memory workers, uint128[] memory amounts,) = three(100, 200, 300);
        bytes32[][] memory paths = proofs(nodes);
        vm.expectEmit();
        emit WorkPool.Claimed(ANN, 100, 100);
        vm.expectEmit();
        emit WorkPool.Unpaid(BEN, 200);
        vm.expectEmit();
        emit WorkPool.Claimed(CYD, 300, 300);
        same("paid", pool.claimMany(workers, amounts, paths), 400);
        same("claimed", pool.claimed(BEN), 0);
        same("claimedTotal", pool.claimedTotal(), 400);
        same("held for it", token.balanceOf(address(pool)), 200);

        BlacklistToken(address(token)).blacklist(BEN, false);
        same("paid later", pool.claimMany(workers, amounts, paths), 200);
        same("BEN", token.balanceOf(BEN), 200);
    }

    function test_a_barred_workers_own_claim_says_why() public {
        bytes32[] memory nodes = barred(BEN);
        bytes memory why = abi.encodeWithSelector(BlacklistToken.Blacklisted.selector, BEN);
        claimRefused(BEN, 200, Tree.proof(nodes, 1), why);
        same("claimed", pool.claimed(BEN), 0);
        same("claimedTotal", pool.claimedTotal(), 0);
    }

    /// @dev The pool itself barred: nobody is paid, nobody's claim is lost.
    function test_a_barred_pool_pays_nobody_and_forgets_nobody() public {
        bytes32[] memory nodes = barred(address(0xDEAD));
        BlacklistToken(address(token)).blacklist(address(pool), true);
        (address[] memory workers, uint128[] memory amounts,) = three(100, 200, 300);
        same("paid", pool.claimMany(workers, amounts, proofs(nodes)), 0);
        same("claimedTotal", pool.claimedTotal(), 0);
        BlacklistToken(address(token)).blacklist(address(pool), false);
        same("paid later", pool.claimMany(workers, amounts, proofs(nodes)), 600);
    }

    function test_a_token_that_says_false_has_not_paid() public {
        FalseToken hostile = new FalseToken();
        poolOf(address(hostile));
        fund(600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        hostile.lie(true);
        bytes4 why = SafeERC20.SafeERC20FailedOperation.selector;
        claimRefused(ANN, 100, Tree.proof(nodes, 0), abi.encodeWithSelector(why, hostile));
        same("paid", pool.claimMany(workers, amounts, proofs(nodes)), 0);
        same("claimed", pool.claimed(ANN), 0);
        same("claimedTotal", pool.claimedTotal(), 0);
    }

    function test_a_token_that_says_nothing_has_paid() public {
        SilentToken silent = new SilentToken();
        poolOf(address(silent));
        silent.mint(address(pool), 600);
        (address[] memory workers, uint128[] memory amounts, bytes32[] memory nodes) =
            three(100, 200, 300);
        open(nodes[0], 600);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        same("paid", pool.claimMany(workers, amounts, proofs(nodes)), 500);
        same("CYD", silent.balanceOf(CYD), 300);
    }

    /// @dev What arrives counts, not what was sent; what a worker is robbed of on the way is the
    /// token's business.
    function test_a_token_that_takes_a_part_cannot_make_the_pool_owe_more_than_it_has() public {
        FeeOnTransferToken hostile = new FeeOnTransferToken();
        poolOf(address(hostile));
        hostile.mint(STRANGER, 1_000);
        vm.prank(STRANGER);
        hostile.transfer(address(pool), 1_000);
        same("funds", pool.funds(), 990);
        bytes32 root = pool.leafOf(ANN, 990);
        postRefused(root, 991, abi.encodeWithSelector(WorkPool.AboveFunds.selector, 991, 990));
        open(root, 990);
        pool.claim(ANN, 990, none);
        same("ANN", hostile.balanceOf(ANN), 980);
        same("funds", pool.funds(), 990);
    }

    // A token that calls back.

    function reentrant() private returns (ReentrantToken hostile, bytes32[] memory nodes) {
        hostile = new ReentrantToken();
        poolOf(address(hostile));
        fund(1_200);
        (,, nodes) = three(100, 200, 300);
        open(nodes[0], 600);
    }

    function refusedWithin(ReentrantToken hostile) private view {
        check("it called", hostile.called());
        check("it was refused", !hostile.succeeded());
        bytes4 why = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
        same("why", bytes32(bytes4(hostile.answer())), bytes32(why));
    }

    function test_a_claim_within_a_claim_is_refused() public {
        (ReentrantToken hostile, bytes32[] memory nodes) = reentrant();
        bytes32[] memory path = Tree.proof(nodes, 1);
        hostile.arm(address(pool), abi.encodeCall(WorkPool.claim, (BEN, 200, path)));
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        refusedWithin(hostile);
        same("BEN", hostile.balanceOf(BEN), 0);
    }

    function test_claims_within_many_claims_are_refused() public {
        (ReentrantToken hostile, bytes32[] memory nodes) = reentrant();
        (address[] memory workers, uint128[] memory amounts,) = three(100, 200, 300);
        bytes32[][] memory paths = proofs(nodes);
        hostile.arm(
            address(pool), abi.encodeCall(WorkPool.claimMany, (workers, amounts, paths))
        );
        same("paid", pool.claimMany(workers, amounts, paths), 600);
        refusedWithin(hostile);
        same("pool", hostile.balanceOf(address(pool)), 600);
    }

    /// @dev In the middle of a payment the money is claimed and still there: `funds` is too high.
    function test_no_root_is_posted_in_the_middle_of_a_payment() public {
        (ReentrantToken hostile, bytes32[] memory nodes) = reentrant();
        vm.prank(COORDINATOR);
        pool.appoint(address(hostile));
        bytes memory more =
            abi.encodeCall(WorkPool.post, (keccak256("more"), RECEIPTS, LIST, uint128(1_300)));
        hostile.arm(address(pool), more);
        pool.claim(ANN, 100, Tree.proof(nodes, 0));
        refusedWithin(hostile);
        (uint64 number,,) = pool.current();
        same("number", number, 1);
    }
}
