// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {RentalBase} from "./RentalBase.sol";

/// @dev The same over all numbers: tolls, sums and times.
contract RentalFuzzTest is RentalBase {
    function _amount(uint256 seed) private pure returns (uint128) {
        return uint128(bound(seed, 1, type(uint128).max));
    }

    function _sorted(uint128 a, uint128 b) private pure returns (uint128, uint128) {
        return a < b ? (a, b) : (b, a);
    }

    function testFuzz_three_vouchers_cost_what_one_does(
        uint256 amount,
        uint256 first,
        uint256 second
    ) public {
        uint128 locked = _amount(amount);
        bytes32 id = _lock(SALT, locked);
        (uint128 low, uint128 high) =
            _sorted(uint128(bound(first, 1, locked)), uint128(bound(second, 1, locked)));
        _redeem(id, low);
        if (high > low) _redeem(id, high);
        if (locked > high) _redeem(id, locked);
        _isOwed(locked - _feeOf(locked), _feeOf(locked), 0, 0);
    }

    function testFuzz_settle_splits_to_the_unit(uint256 amount, uint256 part) public {
        uint128 locked = _amount(amount);
        uint128 used = uint128(bound(part, 0, locked));
        bytes32 id = _lock(SALT, locked);
        bytes memory voucher = _voucher(id, used);
        vm.prank(provider);
        rental.settle(id, used, ROOT, voucher);
        _isOwed(used - _feeOf(used), _feeOf(used), locked - used, 0);
        _empties();
    }

    function testFuzz_the_arbiters_award(
        uint256 amount,
        uint256 paid,
        uint256 signed,
        uint256 award
    ) public {
        uint128 locked = _amount(amount);
        uint128 first = uint128(bound(paid, 0, locked));
        uint128 shown = uint128(bound(signed, first, locked));
        uint128 given = uint128(bound(award, 0, locked));
        bytes32 id = _lock(SALT, locked);
        if (first != 0) _redeem(id, first);
        _dispute(id, provider);
        if (shown > first) _redeem(id, shown);
        vm.prank(arbiter);
        if (given < shown) {
            _failsCumulative(given, shown, locked);
            rental.resolve(id, given);
            given = shown;
            vm.warp(START + WINDOW);
            rental.resolveByTimeout(id);
        } else {
            rental.resolve(id, given);
        }
        _isOwed(given - _feeOf(given), _feeOf(given), locked - given, 0);
        _empties();
    }

    /// @dev Each to his own, and nothing is left.
    function _empties() private {
        address[] memory accounts = new address[](3);
        (accounts[0], accounts[1], accounts[2]) = (payee, fees, client);
        rental.withdrawMany(accounts);
        _isOwed(0, 0, 0, 0);
    }

    function testFuzz_deadlines(uint256 deadline) public {
        uint64 given = uint64(bound(deadline, 0, START + 800 days));
        bool isGood = given > START && given <= START + 366 days;
        vm.prank(client);
        if (!isGood) vm.expectRevert();
        rental.lock(SALT, provider, payee, AMOUNT, given, SPEC);
    }

    function testFuzz_when_who_may_do_what(uint256 term, uint256 wait) public {
        uint64 deadline = uint64(START + bound(term, 1, 366 days));
        vm.prank(client);
        bytes32 id = rental.lock(SALT, provider, payee, AMOUNT, deadline, SPEC);
        uint256 now_ = START + bound(wait, 0, 400 days);
        vm.warp(now_);
        uint256 back = uint256(deadline) + GRACE;
        require(_does(client, abi.encodeCall(rental.dispute, (id))) == (now_ < deadline), "client");
        require(_does(provider, abi.encodeCall(rental.dispute, (id))) == (now_ < back), "provider");
        require(
            _does(client, abi.encodeCall(rental.topUp, (id, 1, deadline))) == (now_ < back), "top"
        );
        require(_does(outsider, abi.encodeCall(rental.refund, (id))) == (now_ >= back), "refund");
    }

    function testFuzz_when_a_dispute_ends(uint256 wait) public {
        bytes32 id = _lock();
        _dispute(id, client);
        uint256 now_ = START + bound(wait, 0, 2 * WINDOW);
        vm.warp(now_);
        uint256 end = START + WINDOW;
        require(_does(arbiter, abi.encodeCall(rental.resolve, (id, 5))) == (now_ < end), "arbiter");
        require(
            _does(outsider, abi.encodeCall(rental.resolveByTimeout, (id))) == (now_ >= end), "time"
        );
    }

    /// @dev Whether it can be done; it is not.
    function _does(address who, bytes memory call_) private returns (bool isDone) {
        uint256 before = vm.snapshotState();
        vm.prank(who);
        (isDone,) = address(rental).call(call_);
        vm.revertToState(before);
    }

    function testFuzz_no_noise_is_a_signature(bytes calldata noise) public {
        bytes32 id = _lock();
        _failsSignature(client);
        rental.redeem(id, 100, ROOT, noise);
    }
}
