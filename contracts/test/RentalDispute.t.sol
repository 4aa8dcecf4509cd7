// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {FeeWallet} from "../src/FeeWallet.sol";
import {RentalBase} from "./RentalBase.sol";

/// @dev refund, dispute, resolve and resolveByTimeout: each to the second.
contract RentalDisputeTest is RentalBase {
    function _failsEarly(uint256 from) private {
        vm.expectRevert(abi.encodeWithSelector(FeeWallet.TooEarly.selector, from));
    }

    function test_refund_from_refundTime_on_by_anybody() public {
        bytes32 id = _lock();
        _redeem(id, 100);
        vm.warp(DEADLINE);
        _failsEarly(REFUND);
        rental.refund(id);
        vm.warp(REFUND - 1);
        _failsEarly(REFUND);
        rental.refund(id);
        vm.warp(REFUND);
        vm.expectEmit();
        emit ComputeRental.Returned(id, client, 900);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        vm.prank(outsider);
        rental.refund(id);
        _isOwed(97, 3, 900, 0);
        _isState(id, ComputeRental.State.Closed);
        _failsState(id, ComputeRental.State.Closed);
        rental.refund(id);
    }

    function test_refund_not_in_a_dispute() public {
        bytes32 id = _lock();
        vm.warp(REFUND - 1);
        _dispute(id, provider);
        vm.warp(REFUND + 300 days);
        _failsState(id, ComputeRental.State.Disputed);
        rental.refund(id);
    }

    function test_the_client_disputes_before_the_deadline() public {
        bytes32 id = _lock();
        vm.warp(DEADLINE);
        vm.prank(client);
        _failsLate(DEADLINE);
        rental.dispute(id);
        vm.warp(DEADLINE - 1);
        vm.expectEmit();
        emit ComputeRental.Disputed(id, client, DEADLINE - 1 + WINDOW);
        vm.prank(client);
        rental.dispute(id);
        _isState(id, ComputeRental.State.Disputed);
        _same(rental.rentals(id).disputedAt, DEADLINE - 1, "disputedAt");
        _same(rental.disputeEnd(id), DEADLINE - 1 + WINDOW, "disputeEnd");
        _isOwed(0, 0, 0, AMOUNT);
    }

    function test_the_provider_disputes_before_refundTime() public {
        bytes32 id = _lock();
        vm.warp(REFUND);
        vm.prank(provider);
        _failsLate(REFUND);
        rental.dispute(id);
        vm.warp(REFUND - 1);
        vm.expectEmit();
        emit ComputeRental.Disputed(id, provider, REFUND - 1 + WINDOW);
        vm.prank(provider);
        rental.dispute(id);
    }

    function test_nobody_else_disputes() public {
        bytes32 id = _lock();
        address[3] memory others = [payee, arbiter, outsider];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.prank(others[i]);
            _failsCaller(id, others[i]);
            rental.dispute(id);
        }
        _failsState("x", ComputeRental.State.None);
        rental.dispute("x");
        _dispute(id, client);
        vm.prank(provider);
        _failsState(id, ComputeRental.State.Disputed);
        rental.dispute(id);
    }

    function test_a_dispute_freezes_payment() public {
        bytes32 id = _lock();
        _dispute(id, client);
        bytes memory voucher = _voucher(id, 400);
        bytes memory consent = _consent(PROVIDER_KEY, id, 400);
        vm.prank(provider);
        _failsState(id, ComputeRental.State.Disputed);
        rental.settle(id, 400, ROOT, voucher);
        vm.prank(client);
        _failsState(id, ComputeRental.State.Disputed);
        rental.release(id, 400, ROOT, consent);
        vm.expectEmit();
        emit ComputeRental.Shown(id, 400, ROOT);
        vm.recordLogs();
        rental.redeem(id, 400, ROOT, voucher);
        _same(vm.getRecordedLogs().length, 1, "events: Shown alone");
        _same(rental.rentals(id).signed, 400, "signed");
        _same(rental.rentals(id).paid, 0, "paid");
        _isOwed(0, 0, 0, AMOUNT);
    }

    function test_vouchers_shown_in_a_dispute_grow_too() public {
        bytes32 id = _lock();
        _redeem(id, 100);
        _dispute(id, provider);
        bytes memory same = _voucher(id, 100);
        _failsCumulative(100, 101, AMOUNT);
        rental.redeem(id, 100, ROOT, same);
        _redeem(id, 400);
        bytes memory lower = _voucher(id, 399);
        _failsCumulative(399, 401, AMOUNT);
        rental.redeem(id, 399, ROOT, lower);
        bytes memory forged = _voucher(PROVIDER_KEY, address(rental), block.chainid, id, 500, ROOT);
        _failsSignature(client);
        rental.redeem(id, 500, ROOT, forged);
        _redeem(id, AMOUNT);
        bytes memory more = _voucher(id, AMOUNT + 1);
        _failsCumulative(AMOUNT + 1, AMOUNT + 1, AMOUNT);
        rental.redeem(id, AMOUNT + 1, ROOT, more);
        _same(rental.rentals(id).signed, AMOUNT, "signed");
        _isOwed(97, 3, 0, 900);
    }

    /// @dev The client sees the provider's redeem and gets his dispute in before it: the voucher
    /// is kept all the same, and paid in the end.
    function test_a_dispute_just_before_a_redeem_gains_time_only() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 400);
        _dispute(id, client);
        vm.prank(provider);
        rental.redeem(id, 400, ROOT, voucher);
        vm.warp(START + WINDOW);
        rental.resolveByTimeout(id);
        _isOwed(388, 12, 600, 0);
    }

    function test_the_arbiter_awards_from_signed_to_locked() public {
        bytes32 id = _lock();
        _redeem(id, 100);
        _dispute(id, client);
        vm.startPrank(arbiter);
        _failsCumulative(99, 100, AMOUNT);
        rental.resolve(id, 99);
        _redeem(id, 400);
        vm.stopPrank();
        vm.startPrank(arbiter);
        _failsCumulative(399, 400, AMOUNT);
        rental.resolve(id, 399);
        _failsCumulative(AMOUNT + 1, 400, AMOUNT);
        rental.resolve(id, AMOUNT + 1);
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 485, 15, 600, bytes32(0)); // 18 - 3
        vm.expectEmit();
        emit ComputeRental.Resolved(id, 600, true);
        vm.expectEmit();
        emit ComputeRental.Returned(id, client, 400);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        rental.resolve(id, 600);
        _isOwed(582, 18, 400, 0);
        _isState(id, ComputeRental.State.Closed);
        _failsState(id, ComputeRental.State.Closed);
        rental.resolve(id, 600);
    }

    function test_the_arbiter_may_award_no_more_or_all() public {
        bytes32 none = _lock("none", AMOUNT);
        bytes32 all = _lock("all", AMOUNT);
        _redeem(none, 100);
        _dispute(none, client);
        _dispute(all, client);
        vm.startPrank(arbiter);
        rental.resolve(none, 100);
        _isOwed(97, 3, 900, AMOUNT);
        rental.resolve(all, AMOUNT);
        _isOwed(97 + 970, 33, 900, 0);
    }

    function test_only_the_arbiter_resolves_and_only_a_dispute() public {
        bytes32 id = _lock();
        vm.prank(arbiter);
        _failsState(id, ComputeRental.State.Locked);
        rental.resolve(id, 100);
        _dispute(id, client);
        address[5] memory others = [client, provider, payee, outsider, address(this)];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.prank(others[i]);
            _failsCaller(id, others[i]);
            rental.resolve(id, 100);
        }
    }

    function test_the_arbiter_has_the_window_then_anybody() public {
        bytes32 id = _lock();
        bytes32 other = _lock("other", AMOUNT);
        _dispute(id, client);
        _dispute(other, client);
        uint256 end = START + WINDOW;
        vm.warp(end - 1);
        _failsEarly(end);
        rental.resolveByTimeout(id);
        vm.prank(arbiter);
        rental.resolve(other, 100);
        vm.warp(end);
        vm.prank(arbiter);
        _failsLate(end);
        rental.resolve(id, 100);
        _redeem(id, 400); // still shown in time
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 388, 12, 400, bytes32(0));
        vm.expectEmit();
        emit ComputeRental.Resolved(id, 400, false);
        vm.expectEmit();
        emit ComputeRental.Returned(id, client, 600);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        vm.prank(outsider);
        rental.resolveByTimeout(id);
        _failsState(id, ComputeRental.State.Closed);
        rental.resolveByTimeout(id);
    }

    function test_silence_pays_what_was_paid_if_nothing_was_shown() public {
        bytes32 id = _lock();
        _redeem(id, 100);
        _dispute(id, client);
        vm.warp(START + WINDOW);
        rental.resolveByTimeout(id);
        _isOwed(97, 3, 900, 0);
    }

    function test_time_ends_no_rental_without_a_dispute() public {
        bytes32 id = _lock();
        vm.warp(REFUND + 100 days);
        _failsState(id, ComputeRental.State.Locked);
        rental.resolveByTimeout(id);
    }

    function test_the_state_is_one_figure() public {
        bytes32 id = _lock();
        bytes32[5] memory seen;
        seen[0] = rental.stateId(id);
        _redeem(id, 100);
        seen[1] = rental.stateId(id);
        _dispute(id, client);
        seen[2] = rental.stateId(id);
        _redeem(id, 200);
        seen[3] = rental.stateId(id);
        vm.prank(arbiter);
        rental.resolve(id, 200);
        seen[4] = rental.stateId(id);
        for (uint256 i = 0; i < seen.length; ++i) {
            for (uint256 j = 0; j < i; ++j) require(seen[i] != seen[j], "two states, one figure");
        }
    }
}
