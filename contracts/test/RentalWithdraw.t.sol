// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ComputeRental} from "../src/ComputeRental.sol";
import {DevToken} from "../src/DevToken.sol";
import {
    BlacklistToken,
    FalseToken,
    FeeOnTransferToken,
    ReentrantToken,
    SilentToken
} from "./HostileTokens.sol";
import {RentalBase} from "./RentalBase.sol";

/// @dev withdrawTo and withdrawMany, and tokens that do what they should not.
contract RentalWithdrawTest is RentalBase {
    function _failsOwed(address account) private {
        vm.expectRevert(abi.encodeWithSelector(ComputeRental.NothingOwed.selector, account));
    }

    function test_anybody_sends_what_is_owed_to_whom_it_is_owed() public {
        bytes32 id = _lock();
        _redeem(id, 400);
        vm.expectEmit();
        emit ComputeRental.Withdrawn(payee, 388);
        vm.prank(outsider);
        rental.withdrawTo(payee);
        _same(token.balanceOf(payee), 388, "balance of the payee");
        _isOwed(0, 12, 0, 600);
        _failsOwed(payee);
        rental.withdrawTo(payee);
    }

    function test_many_at_once_without_those_owed_nothing() public {
        bytes32 id = _lock();
        _redeem(id, 400);
        address[] memory accounts = new address[](4);
        (accounts[0], accounts[1], accounts[2], accounts[3]) = (payee, outsider, fees, payee);
        vm.recordLogs();
        rental.withdrawMany(accounts);
        _same(vm.getRecordedLogs().length, 4, "events: two Withdrawn, two Transfer");
        _same(token.balanceOf(payee), 388, "balance of the payee");
        _same(token.balanceOf(fees), 12, "balance of the fee wallet");
        _isOwed(0, 0, 0, 600);
        rental.withdrawMany(accounts);
        rental.withdrawMany(new address[](0));
    }

    function test_a_gift_is_nobodys_and_harms_nobody() public {
        bytes32 id = _lock();
        token.mint(address(rental), 5);
        vm.prank(client);
        rental.topUp(id, 1, DEADLINE);
        _redeem(id, AMOUNT + 1);
        rental.withdrawTo(payee);
        rental.withdrawTo(fees);
        _same(token.balanceOf(address(rental)), 5, "balance");
        _same(rental.totalLiability(), 0, "liability");
    }

    function test_what_arrives_short_is_refused() public {
        _use(new FeeOnTransferToken());
        vm.prank(client);
        bytes memory fault = abi.encodeWithSelector(ComputeRental.NotReceived.selector, 1000, 990);
        _fails(fault);
        rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
    }

    function test_false_is_a_failure() public {
        FalseToken lying = new FalseToken();
        _use(lying);
        bytes32 id = _lock();
        _redeem(id, 400);
        lying.lie(true);
        bytes memory fault =
            abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(token));
        _fails(fault);
        rental.withdrawTo(payee);
        vm.prank(client);
        _fails(fault);
        rental.lock("other", provider, payee, AMOUNT, DEADLINE, SPEC);
        lying.lie(false);
        rental.withdrawTo(payee);
        _isOwed(0, 12, 0, 600);
    }

    function test_one_account_that_the_token_refuses_blocks_nobody_else() public {
        BlacklistToken strict = new BlacklistToken();
        _use(strict);
        bytes32 id = _lock();
        strict.blacklist(payee, true);
        bytes memory voucher = _voucher(id, 400);
        vm.prank(provider);
        rental.settle(id, 400, ROOT, voucher);
        bytes memory fault = abi.encodeWithSelector(BlacklistToken.Blacklisted.selector, payee);
        _fails(fault);
        rental.withdrawTo(payee);
        address[] memory accounts = new address[](2);
        (accounts[0], accounts[1]) = (fees, payee);
        _fails(fault);
        rental.withdrawMany(accounts);
        rental.withdrawTo(fees);
        rental.withdrawTo(client);
        _isOwed(388, 0, 0, 0);
        strict.blacklist(payee, false);
        rental.withdrawTo(payee);
        _isOwed(0, 0, 0, 0);
    }

    function test_a_token_that_returns_nothing_is_money() public {
        SilentToken silent = new SilentToken();
        token = DevToken(address(silent));
        rental = new ComputeRental(token, fees, arbiter, GRACE, WINDOW);
        silent.mint(client, AMOUNT);
        vm.startPrank(client);
        silent.approve(address(rental), AMOUNT); // it has no permit, either: no harm
        rental.lockWithPermit(SALT, provider, payee, AMOUNT, DEADLINE, SPEC, START, 0, 0, 0);
        vm.stopPrank();
        _redeem(rental.rentalId(client, SALT), 400);
        rental.withdrawTo(payee);
        _isOwed(0, 12, 0, 600);
    }

    /// @dev The token calls back in the middle of a transfer; whatever it asks for is refused.
    function test_nothing_is_entered_twice() public {
        ReentrantToken tricky = new ReentrantToken();
        _use(tricky);
        bytes32 id = _lock();
        _redeem(id, 400);
        bytes memory voucher = _voucher(id, 500);
        address[] memory accounts = new address[](1);
        accounts[0] = payee;
        bytes[10] memory calls = [
            abi.encodeCall(rental.withdrawTo, (payee)),
            abi.encodeCall(rental.withdrawMany, (accounts)),
            abi.encodeCall(rental.redeem, (id, 500, ROOT, voucher)),
            abi.encodeCall(rental.settle, (id, 500, ROOT, voucher)),
            abi.encodeCall(rental.release, (id, 500, ROOT, voucher)),
            abi.encodeCall(rental.refund, (id)),
            abi.encodeCall(rental.dispute, (id)),
            abi.encodeCall(rental.resolve, (id, 500)),
            abi.encodeCall(rental.resolveByTimeout, (id)),
            abi.encodeCall(rental.topUp, (id, 1, DEADLINE))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            tricky.arm(address(rental), calls[i]);
            vm.prank(client);
            rental.topUp(id, 1, DEADLINE);
            _isRefused(tricky);
        }
        tricky.arm(address(rental), calls[0]);
        rental.withdrawTo(payee);
        _isRefused(tricky);
        tricky.arm(address(rental), calls[0]);
        accounts[0] = fees;
        rental.withdrawMany(accounts);
        _isRefused(tricky);
        _isOwed(0, 0, 0, 600 + calls.length);
    }

    function test_no_lock_within_a_transfer() public {
        ReentrantToken tricky = new ReentrantToken();
        _use(tricky);
        _fund(address(tricky), 2 * AMOUNT);
        bytes[2] memory calls = [
            abi.encodeCall(rental.lock, (SALT, provider, payee, AMOUNT, DEADLINE, SPEC)),
            abi.encodeCall(
                rental.lockWithPermit,
                (SALT, provider, payee, AMOUNT, DEADLINE, SPEC, START, 0, 0, 0)
            )
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            tricky.arm(address(rental), calls[i]);
            _lock(bytes32(i), AMOUNT);
            _isRefused(tricky);
        }
        tricky.arm(address(rental), calls[0]);
        vm.prank(client); // enters by the other door
        rental.lockWithPermit("permit", provider, payee, AMOUNT, DEADLINE, SPEC, START, 0, 0, 0);
        _isRefused(tricky);
        _isOwed(0, 0, 0, 3 * AMOUNT);
    }

    function _isRefused(ReentrantToken tricky) private view {
        require(tricky.called() && !tricky.succeeded(), "entered twice");
        bytes4 fault = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
        require(bytes4(tricky.answer()) == fault, "refused for another reason");
    }
}
