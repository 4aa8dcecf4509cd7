// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {WorkPool} from "../src/WorkPool.sol";
import {Coarse, PoolCase} from "./PoolCase.t.sol";

/// @dev How roots come, wait, are vetoed and take each other's place; and whose keys do that.
contract PoolRootsTest is PoolCase {
    bytes32 private constant ROOT = keccak256("root");
    bytes32 private constant NEXT = keccak256("next");

    function currentIs(uint64 number, bytes32 root, uint128 total) private view {
        (uint64 number_, bytes32 root_, uint128 total_) = pool.current();
        same("number", number_, number);
        same("root", root_, root);
        same("total", total_, total);
    }

    function waitingIs(uint64 number, bytes32 root, uint128 total, uint64 activeAt) private view {
        (uint64 number_, bytes32 root_, uint128 total_, uint64 activeAt_) = pool.waiting();
        same("number", number_, number);
        same("root", root_, root);
        same("total", total_, total);
        same("activeAt", activeAt_, activeAt);
    }

    // The constructor.

    function test_the_constructor_says_who_is_who() public {
        vm.expectEmit();
        emit WorkPool.CoordinatorAppointed(COORDINATOR);
        vm.expectEmit();
        emit WorkPool.GuardianChanged(GUARDIAN);
        pool = newPool(CAP);
        same("token", address(pool.token()), address(token));
        same("owner", pool.owner(), COORDINATOR);
        same("coordinator", pool.coordinator(), COORDINATOR);
        same("guardian", pool.guardian(), GUARDIAN);
        same("window", pool.window(), WINDOW);
        same("cap", pool.capPerEpoch(), CAP);
        same("funds", pool.funds(), 0);
        same("postable", pool.postableFrom(), 0);
        currentIs(0, 0, 0);
        waitingIs(0, 0, 0, 0);
    }

    function test_a_pool_needs_a_token_an_owner_a_guardian_and_a_cap() public {
        vm.expectRevert(WorkPool.ZeroAddress.selector);
        new WorkPool(IERC20(address(0)), COORDINATOR, GUARDIAN, WINDOW, CAP);
        vm.expectRevert(WorkPool.ZeroAddress.selector);
        new WorkPool(token, COORDINATOR, address(0), WINDOW, CAP);
        vm.expectRevert(
            abi.encodeWithSelector(Ownable.OwnableInvalidOwner.selector, address(0))
        );
        new WorkPool(token, address(0), GUARDIAN, WINDOW, CAP);
        IERC20 coarse = IERC20(address(new Coarse()));
        vm.expectRevert(abi.encodeWithSelector(WorkPool.WrongDecimals.selector, 18, 6));
        new WorkPool(coarse, COORDINATOR, GUARDIAN, WINDOW, CAP);
        vm.expectRevert(WorkPool.ZeroCap.selector);
        new WorkPool(token, COORDINATOR, GUARDIAN, WINDOW, 0);
    }

    function test_the_window_has_bounds() public {
        new WorkPool(token, COORDINATOR, GUARDIAN, 1 minutes, CAP);
        new WorkPool(token, COORDINATOR, GUARDIAN, 90 days, CAP);
        bytes4 why = WorkPool.BadWindow.selector;
        vm.expectRevert(abi.encodeWithSelector(why, 59, 1 minutes, 90 days));
        new WorkPool(token, COORDINATOR, GUARDIAN, 59, CAP);
        vm.expectRevert(abi.encodeWithSelector(why, 90 days + 1, 1 minutes, 90 days));
        new WorkPool(token, COORDINATOR, GUARDIAN, 90 days + 1, CAP);
    }

    // Posts.

    function test_a_root_waits_its_window_and_then_is_current() public {
        fund(500);
        uint64 from = uint64(block.timestamp) + WINDOW;
        vm.expectEmit();
        emit WorkPool.RootPosted(1, ROOT, RECEIPTS, LIST, 500, from);
        same("number", post(ROOT, 500), 1);
        currentIs(0, 0, 0);
        waitingIs(1, ROOT, 500, from);
        same("postable", pool.postableFrom(), from);
        vm.warp(from - 1);
        currentIs(0, 0, 0);
        vm.warp(from);
        currentIs(1, ROOT, 500);
        waitingIs(0, 0, 0, 0);
    }

    function test_the_last_root_stays_current_while_the_next_waits() public {
        fund(500);
        open(ROOT, 200);
        same("number", post(NEXT, 500), 2);
        currentIs(1, ROOT, 200);
        vm.warp(block.timestamp + WINDOW);
        currentIs(2, NEXT, 500);
    }

    function test_one_root_waits_at_a_time() public {
        fund(500);
        post(ROOT, 100);
        uint256 from = pool.postableFrom();
        bytes memory why = abi.encodeWithSelector(WorkPool.TooEarly.selector, from);
        postRefused(NEXT, 200, why);
        vm.warp(from - 1);
        postRefused(NEXT, 200, why);
        vm.warp(from);
        post(NEXT, 200);
    }

    function test_only_the_coordinator_posts() public {
        fund(500);
        vm.prank(STRANGER);
        vm.expectRevert(
            abi.encodeWithSelector(WorkPool.NotAllowed.selector, STRANGER, COORDINATOR)
        );
        pool.post(ROOT, RECEIPTS, LIST, 1);
    }

    function test_a_root_of_zero_is_none() public {
        fund(500);
        postRefused(0, 1, abi.encodeWithSelector(WorkPool.ZeroRoot.selector));
    }

    function test_a_total_never_falls() public {
        fund(500);
        open(ROOT, 200);
        postRefused(NEXT, 199, abi.encodeWithSelector(WorkPool.TotalFalls.selector, 199, 200));
        post(NEXT, 200); // another root of the same total: a correction
        vm.prank(GUARDIAN);
        pool.veto(2);
        vm.warp(block.timestamp + WINDOW);
        postRefused(NEXT, 199, abi.encodeWithSelector(WorkPool.TotalFalls.selector, 199, 200));
    }

    function test_a_total_grows_by_the_cap_at_most() public {
        fund(10 * CAP);
        bytes4 why = WorkPool.AboveCap.selector;
        postRefused(ROOT, CAP + 1, abi.encodeWithSelector(why, CAP + 1, CAP));
        open(ROOT, CAP);
        postRefused(NEXT, 2 * CAP + 1, abi.encodeWithSelector(why, 2 * CAP + 1, 2 * CAP));
        open(NEXT, 2 * CAP);
        currentIs(2, NEXT, 2 * CAP);
    }

    function test_a_total_is_what_the_pool_ever_had_at_most() public {
        fund(300);
        bytes4 why = WorkPool.AboveFunds.selector;
        postRefused(ROOT, 301, abi.encodeWithSelector(why, 301, 300));
        open(pool.leafOf(ANN, 300), 300);
        pool.claim(ANN, 300, new bytes32[](0));
        same("funds", pool.funds(), 300);
        postRefused(NEXT, 301, abi.encodeWithSelector(why, 301, 300));
        vm.prank(ANN); // a plain transfer counts, whoever it is from
        token.transfer(address(pool), 50);
        same("funds", pool.funds(), 350);
        open(NEXT, 350);
        currentIs(2, NEXT, 350);
    }

    // Vetoes.

    function test_the_guardian_vetoes_and_then_nothing_is_posted_for_a_window() public {
        fund(500);
        open(ROOT, 100);
        post(NEXT, 300);
        vm.warp(block.timestamp + WINDOW / 2);
        uint64 from = uint64(block.timestamp) + WINDOW;
        vm.expectEmit();
        emit WorkPool.RootVetoed(2);
        vm.prank(GUARDIAN);
        pool.veto(2);
        currentIs(1, ROOT, 100);
        waitingIs(0, 0, 0, 0);
        same("postable", pool.postableFrom(), from);
        vm.warp(from - 1);
        postRefused(NEXT, 300, abi.encodeWithSelector(WorkPool.TooEarly.selector, from));
        vm.warp(from);
        currentIs(1, ROOT, 100); // it does not come back
        same("number", post(NEXT, 300), 3);
        vm.warp(from + WINDOW);
        currentIs(3, NEXT, 300);
    }

    function test_the_owner_vetoes_too() public {
        fund(500);
        post(ROOT, 100);
        vm.prank(COORDINATOR);
        pool.veto(1);
        vm.warp(block.timestamp + 10 * WINDOW);
        currentIs(0, 0, 0);
    }

    function test_a_stranger_does_not_veto() public {
        fund(500);
        post(ROOT, 100);
        vm.prank(STRANGER);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.NotAllowed.selector, STRANGER, GUARDIAN));
        pool.veto(1);
    }

    function test_an_open_root_is_not_vetoed() public {
        fund(500);
        post(ROOT, 100);
        vm.warp(block.timestamp + WINDOW);
        vetoRefused(1, 0);
        currentIs(1, ROOT, 100);
    }

    function test_a_veto_names_its_root() public {
        fund(500);
        vetoRefused(0, 0); // none waits
        open(ROOT, 100);
        post(NEXT, 300);
        vetoRefused(1, 2);
        vetoRefused(3, 2);
        vetoRefused(0, 2);
        vm.prank(GUARDIAN);
        pool.veto(2);
        vetoRefused(2, 0); // once is enough: the rest does not grow longer
    }

    function vetoRefused(uint64 number, uint64 waits) private {
        vm.prank(GUARDIAN);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.NotWaiting.selector, number, waits));
        pool.veto(number);
    }

    // Keys.

    function test_the_owner_appoints_another_coordinator() public {
        fund(500);
        vm.expectEmit();
        emit WorkPool.CoordinatorAppointed(STRANGER);
        vm.prank(COORDINATOR);
        pool.appoint(STRANGER);
        postRefused(
            ROOT, 1, abi.encodeWithSelector(WorkPool.NotAllowed.selector, COORDINATOR, STRANGER)
        );
        vm.prank(STRANGER);
        pool.post(ROOT, RECEIPTS, LIST, 1);
    }

    function test_only_the_owner_appoints_and_proposes() public {
        bytes memory why =
            abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, GUARDIAN);
        vm.startPrank(GUARDIAN);
        vm.expectRevert(why);
        pool.appoint(GUARDIAN);
        vm.expectRevert(why);
        pool.proposeGuardian(STRANGER);
        vm.expectRevert(why);
        pool.renounceOwnership();
        vm.stopPrank();
    }

    function test_ownership_goes_in_two_steps_and_is_not_given_up() public {
        vm.startPrank(COORDINATOR);
        vm.expectRevert(WorkPool.CannotRenounce.selector);
        pool.renounceOwnership();
        pool.transferOwnership(STRANGER);
        vm.stopPrank();
        same("owner", pool.owner(), COORDINATOR);
        vm.prank(STRANGER);
        pool.acceptOwnership();
        same("owner", pool.owner(), STRANGER);
        same("coordinator", pool.coordinator(), COORDINATOR); // the posting key stays what it was
    }

    function test_another_guardian_begins_after_its_delay_by_its_own_hand() public {
        fund(500);
        uint256 from = block.timestamp + 30 days;
        vm.expectEmit();
        emit WorkPool.GuardianProposed(STRANGER, from);
        vm.prank(COORDINATOR);
        pool.proposeGuardian(STRANGER);
        same("proposed", pool.proposedGuardian(), STRANGER);
        same("from", pool.guardianFrom(), from);

        vm.warp(from - 1);
        vm.prank(STRANGER);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.TooEarly.selector, from));
        pool.acceptGuardian();
        post(ROOT, 1);
        vm.prank(GUARDIAN); // who still is it
        pool.veto(1);

        vm.warp(from);
        vm.prank(GUARDIAN);
        vm.expectRevert(abi.encodeWithSelector(WorkPool.NotAllowed.selector, GUARDIAN, STRANGER));
        pool.acceptGuardian();
        vm.expectEmit();
        emit WorkPool.GuardianChanged(STRANGER);
        vm.prank(STRANGER);
        pool.acceptGuardian();
        same("guardian", pool.guardian(), STRANGER);
        same("proposed", pool.proposedGuardian(), address(0));
        same("from", pool.guardianFrom(), 0);
    }

    function test_a_proposal_is_taken_back() public {
        vm.startPrank(COORDINATOR);
        pool.proposeGuardian(STRANGER);
        vm.expectEmit();
        emit WorkPool.GuardianProposed(address(0), 0);
        pool.proposeGuardian(address(0));
        vm.stopPrank();
        vm.warp(block.timestamp + 31 days);
        vm.prank(STRANGER);
        vm.expectRevert(
            abi.encodeWithSelector(WorkPool.NotAllowed.selector, STRANGER, address(0))
        );
        pool.acceptGuardian();
    }
}
