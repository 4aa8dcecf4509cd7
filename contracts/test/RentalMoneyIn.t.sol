// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ComputeRental} from "../src/ComputeRental.sol";
import {FeeWallet} from "../src/FeeWallet.sol";
import {RentalBase} from "./RentalBase.sol";

/// @dev A token of the other usual kind, as much of it as the constructor looks at.
contract EighteenDecimals {
    function decimals() external pure returns (uint8) {
        return 18;
    }
}

/// @dev The constructor, lock, lockWithPermit and topUp.
contract RentalMoneyInTest is RentalBase {
    uint256 private constant MINUTE = 1 minutes;
    uint256 private constant MOST = 90 days;

    function test_constructor_keeps_what_it_is_given() public view {
        _same(address(rental.token()), address(token), "token");
        _same(rental.arbiter(), arbiter, "arbiter");
        _same(rental.grace(), GRACE, "grace");
        _same(rental.disputeWindow(), WINDOW, "window");
        _same(rental.feeWallet(), fees, "fee wallet");
        _same(rental.owner(), address(this), "owner");
        _same(rental.MAX_TERM(), 366 days, "term");
        (, string memory name, string memory version, uint256 chain, address verifier,,) =
            rental.eip712Domain();
        require(keccak256(bytes(name)) == keccak256("ComputeRental"), "name");
        require(keccak256(bytes(version)) == keccak256("1"), "version");
        _same(chain, block.chainid, "chain");
        _same(verifier, address(rental), "verifier");
    }

    function test_constructor_refuses() public {
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        new ComputeRental(token, address(0), arbiter, GRACE, WINDOW);
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        new ComputeRental(token, fees, address(0), GRACE, WINDOW);
        IERC20 other = IERC20(address(new EighteenDecimals()));
        _fails(abi.encodeWithSelector(ComputeRental.WrongDecimals.selector, 18, 6));
        new ComputeRental(other, fees, arbiter, GRACE, WINDOW);
        vm.expectRevert(); // no code, no decimals
        new ComputeRental(IERC20(outsider), fees, arbiter, GRACE, WINDOW);
    }

    function test_periods_are_1_minute_to_90_days() public {
        new ComputeRental(token, fees, arbiter, uint64(MINUTE), uint64(MOST));
        new ComputeRental(token, fees, arbiter, uint64(MOST), uint64(MINUTE));
        uint64[3] memory bad = [uint64(0), uint64(MINUTE - 1), uint64(MOST + 1)];
        for (uint256 i = 0; i < bad.length; ++i) {
            bytes memory fault =
                abi.encodeWithSelector(ComputeRental.BadPeriod.selector, bad[i], MINUTE, MOST);
            _fails(fault);
            new ComputeRental(token, fees, arbiter, bad[i], WINDOW);
            _fails(fault);
            new ComputeRental(token, fees, arbiter, GRACE, bad[i]);
        }
    }

    function test_lock_takes_the_money_and_tells_all_fields() public {
        bytes32 id = keccak256(abi.encode(client, SALT));
        vm.expectEmit();
        emit ComputeRental.Locked(id, client, provider, payee, AMOUNT, DEADLINE, SPEC);
        require(_lock() == id && rental.rentalId(client, SALT) == id, "id");
        ComputeRental.Rental memory seen = rental.rentals(id);
        _same(seen.client, client, "client");
        _same(seen.provider, provider, "provider");
        _same(seen.payee, payee, "payee");
        _same(seen.deadline, DEADLINE, "deadline");
        _same(seen.disputedAt, 0, "disputedAt");
        _same(seen.locked, AMOUNT, "locked");
        _same(seen.paid, 0, "paid");
        _same(seen.signed, 0, "signed");
        require(seen.spec == SPEC, "spec");
        _isState(id, ComputeRental.State.Locked);
        _isOwed(0, 0, 0, AMOUNT);
        _same(rental.refundTime(id), REFUND, "refundTime");
        _same(rental.disputeEnd(id), 0, "disputeEnd");
        require(rental.stateId(id) == keccak256(abi.encode(id, seen)), "stateId");
    }

    function test_an_id_never_locked_is_all_zero() public {
        require(rental.refundTime("x") == 0 && rental.disputeEnd("x") == 0, "times");
        _isState("x", ComputeRental.State.None);
        _failsState("x", ComputeRental.State.None);
        rental.refund("x");
    }

    function test_lock_refuses() public {
        vm.startPrank(client);
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        rental.lock(SALT, address(0), payee, AMOUNT, DEADLINE, SPEC);
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        rental.lock(SALT, provider, address(0), AMOUNT, DEADLINE, SPEC);
        vm.expectRevert(FeeWallet.OwnAddress.selector);
        rental.lock(SALT, provider, address(rental), AMOUNT, DEADLINE, SPEC);
        vm.expectRevert(ComputeRental.ZeroAmount.selector);
        rental.lock(SALT, provider, payee, 0, DEADLINE, SPEC);
        uint256 most = START + 366 days;
        uint64[3] memory bad = [uint64(0), START, uint64(most + 1)];
        for (uint256 i = 0; i < bad.length; ++i) {
            _fails(
                abi.encodeWithSelector(ComputeRental.BadDeadline.selector, bad[i], START + 1, most)
            );
            rental.lock(SALT, provider, payee, AMOUNT, bad[i], SPEC);
        }
        rental.lock("first", provider, payee, AMOUNT, START + 1, SPEC);
        rental.lock("last", provider, payee, AMOUNT, uint64(most), SPEC);
    }

    function test_a_salt_serves_once() public {
        bytes32 id = _lock();
        vm.startPrank(client);
        _failsState(id, ComputeRental.State.Locked);
        rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
        rental.release(id, AMOUNT, ROOT, "");
        _failsState(id, ComputeRental.State.Closed);
        rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
    }

    function test_another_takes_nobodys_id() public {
        _fund(outsider, AMOUNT);
        vm.prank(outsider);
        bytes32 other = rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
        require(_lock() != other, "one id for two clients");
    }

    function test_lock_without_money_or_approval_reverts() public {
        vm.prank(outsider);
        vm.expectRevert();
        rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
        token.mint(outsider, AMOUNT);
        vm.prank(outsider);
        vm.expectRevert();
        rental.lock(SALT, provider, payee, AMOUNT, DEADLINE, SPEC);
    }

    function _permit(uint256 key, uint256 amount, uint256 until)
        private
        view
        returns (uint8, bytes32, bytes32)
    {
        address owner = vm.addr(key);
        bytes32 kind = keccak256(
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        );
        bytes32 what = keccak256(
            abi.encode(kind, owner, address(rental), amount, token.nonces(owner), until)
        );
        bytes32 digest =
            keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), what));
        return vm.sign(key, digest);
    }

    function test_lockWithPermit_needs_no_approval() public {
        vm.prank(client);
        token.approve(address(rental), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(CLIENT_KEY, AMOUNT, START);
        bytes32 id = rental.rentalId(client, SALT);
        vm.expectEmit();
        emit ComputeRental.Locked(id, client, provider, payee, AMOUNT, DEADLINE, SPEC);
        vm.prank(client);
        bytes32 got =
            rental.lockWithPermit(SALT, provider, payee, AMOUNT, DEADLINE, SPEC, START, v, r, s);
        require(got == id, "id");
        _same(token.allowance(client, address(rental)), 0, "allowance");
        _isOwed(0, 0, 0, AMOUNT);
    }

    function test_a_permit_used_by_another_before_does_no_harm() public {
        vm.prank(client);
        token.approve(address(rental), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(CLIENT_KEY, AMOUNT, START);
        vm.prank(outsider);
        token.permit(client, address(rental), AMOUNT, START, v, r, s);
        vm.prank(client);
        rental.lockWithPermit(SALT, provider, payee, AMOUNT, DEADLINE, SPEC, START, v, r, s);
        _isOwed(0, 0, 0, AMOUNT);
    }

    function test_a_bad_permit_locks_nothing() public {
        vm.prank(client);
        token.approve(address(rental), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(PROVIDER_KEY, AMOUNT, START);
        vm.prank(client);
        vm.expectRevert();
        rental.lockWithPermit(SALT, provider, payee, AMOUNT, DEADLINE, SPEC, START, v, r, s);
    }

    function test_topUp_adds_money_time_or_both() public {
        bytes32 id = _lock();
        vm.startPrank(client);
        vm.expectEmit();
        emit ComputeRental.ToppedUp(id, 5, AMOUNT + 5, DEADLINE);
        rental.topUp(id, 5, DEADLINE);
        vm.expectEmit();
        emit ComputeRental.ToppedUp(id, 0, AMOUNT + 5, DEADLINE + 1);
        rental.topUp(id, 0, DEADLINE + 1);
        rental.topUp(id, 7, DEADLINE + 2);
        _same(rental.rentals(id).locked, AMOUNT + 12, "locked");
        _same(rental.rentals(id).deadline, DEADLINE + 2, "deadline");
        _same(rental.refundTime(id), REFUND + 2, "refundTime");
        _isOwed(0, 0, 0, AMOUNT + 12);
    }

    function test_topUp_refuses() public {
        bytes32 id = _lock();
        _failsCaller(id, address(this));
        rental.topUp(id, 1, DEADLINE);
        _failsState("x", ComputeRental.State.None);
        rental.topUp("x", 1, DEADLINE);
        vm.startPrank(client);
        _fails(abi.encodeWithSelector(ComputeRental.NothingAdded.selector, id));
        rental.topUp(id, 0, DEADLINE);
        uint256 most = START + 366 days;
        uint64[2] memory bad = [DEADLINE - 1, uint64(most + 1)];
        for (uint256 i = 0; i < bad.length; ++i) {
            _fails(
                abi.encodeWithSelector(ComputeRental.BadDeadline.selector, bad[i], DEADLINE, most)
            );
            rental.topUp(id, 1, bad[i]);
        }
        uint256 sum = uint256(AMOUNT) + type(uint128).max;
        _fails(abi.encodeWithSelector(ComputeRental.TooMuch.selector, sum, type(uint128).max));
        rental.topUp(id, type(uint128).max, DEADLINE);
        rental.topUp(id, 1, uint64(most));
    }

    function test_topUp_until_refundTime() public {
        bytes32 id = _lock();
        vm.startPrank(client);
        vm.warp(DEADLINE);
        rental.topUp(id, 1, DEADLINE); // money alone: the deadline stays, though it is over
        vm.warp(REFUND - 1);
        rental.topUp(id, 1, DEADLINE + 1);
        vm.warp(REFUND);
        rental.topUp(id, 1, DEADLINE + 1); // the refund moved by a second, too
        vm.warp(REFUND + 1);
        _failsLate(REFUND + 1);
        rental.topUp(id, 1, DEADLINE + 10);
    }

    function test_topUp_fills_up_to_the_largest_number() public {
        bytes32 id = _lock();
        vm.prank(client);
        rental.topUp(id, type(uint128).max - AMOUNT, DEADLINE);
        _redeem(id, type(uint128).max);
        uint256 all = type(uint128).max;
        _isOwed(all - _feeOf(all), _feeOf(all), 0, 0);
    }

    function test_topUp_not_in_a_dispute_nor_after() public {
        bytes32 id = _lock();
        _dispute(id, client);
        vm.startPrank(client);
        _failsState(id, ComputeRental.State.Disputed);
        rental.topUp(id, 1, DEADLINE);
        vm.warp(START + WINDOW);
        rental.resolveByTimeout(id);
        _failsState(id, ComputeRental.State.Closed);
        rental.topUp(id, 1, DEADLINE);
    }
}
