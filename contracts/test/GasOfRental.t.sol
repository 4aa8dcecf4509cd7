// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {RentalBase} from "./RentalBase.sol";

/// @dev What operations cost who sends them, as a receipt would say (`--isolate`: each call is a
/// transaction), in a contract that has been in use. tests/contracts/gas.py compares the figures
/// with contracts/gas-snapshot.
contract RentalGasTest is RentalBase {
    uint128 private constant SMALL = 1_000_000;
    uint128 private constant HALF = 50_000_000;
    uint128 private constant ALL = 100_000_000;

    bytes32 private id;

    /// @dev One rental has come and gone: everybody is known to token and contract.
    function setUp() public override {
        super.setUp();
        id = _lock("first", ALL);
        _redeem(id, HALF);
        _settle(HALF, "");
        rental.withdrawTo(payee);
        id = _lock("one that stays", ALL);
        _redeem(id, HALF);
        id = _lock("this", ALL);
    }

    function note(string memory name) private {
        vm.snapshotGasLastCall("ComputeRental", name);
    }

    function _settle(uint128 cumulative, bytes memory signature) private {
        vm.prank(provider);
        rental.settle(id, cumulative, ROOT, signature);
    }

    function _release(uint128 cumulative, bytes memory signature) private {
        vm.prank(client);
        rental.release(id, cumulative, ROOT, signature);
    }

    function test_gas_money_in() public {
        _lock("another", ALL);
        note("lock");
        vm.prank(client);
        token.approve(address(rental), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit();
        vm.prank(client);
        rental.lockWithPermit("with", provider, payee, ALL, DEADLINE, SPEC, START, v, r, s);
        note("lockWithPermit");
        vm.prank(client);
        token.approve(address(rental), ALL);
        vm.prank(client);
        rental.topUp(id, SMALL, DEADLINE);
        note("topUp, money");
        vm.prank(client);
        rental.topUp(id, 0, DEADLINE + 1);
        note("topUp, time");
    }

    function _permit() private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 kind = keccak256(
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        );
        bytes32 what = keccak256(
            abi.encode(kind, client, address(rental), uint256(ALL), token.nonces(client), START)
        );
        bytes32 digest =
            keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), what));
        return vm.sign(CLIENT_KEY, digest);
    }

    function test_gas_vouchers() public {
        _redeem(id, SMALL);
        note("redeem, the first");
        _redeem(id, HALF);
        note("redeem, a later one");
        bytes memory voucher = _voucher(id, ALL - 1);
        _settle(ALL - 1, voucher);
        note("settle");
        rental.withdrawTo(payee);
        note("withdrawTo");
    }

    function test_gas_a_payees_first_money() public {
        payee = address(0xF00);
        id = _lock("for somebody new", ALL);
        _redeem(id, HALF);
        note("redeem, a payee's first");
        rental.withdrawTo(payee);
        note("withdrawTo, an account's first");
    }

    function test_gas_agreed_ends() public {
        _settle(0, "");
        note("settle, nothing new");
        id = _lock("for a release", ALL);
        bytes memory consent = _consent(PROVIDER_KEY, id, HALF);
        _release(HALF, consent);
        note("release, a part");
        id = _lock("for another", ALL);
        _release(ALL, "");
        note("release, all");
    }

    function test_gas_refund() public {
        vm.warp(REFUND);
        rental.refund(id);
        note("refund");
    }

    function test_gas_dispute() public {
        _dispute(id, client);
        note("dispute");
        bytes memory voucher = _voucher(id, SMALL);
        rental.redeem(id, SMALL, ROOT, voucher);
        note("redeem, in a dispute");
        vm.prank(arbiter);
        rental.resolve(id, HALF);
        note("resolve");
    }

    function test_gas_silent_arbiter() public {
        _dispute(id, provider);
        vm.warp(START + WINDOW);
        rental.resolveByTimeout(id);
        note("resolveByTimeout");
    }
}
