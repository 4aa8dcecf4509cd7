// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {FeeWallet} from "../src/FeeWallet.sol";
import {Base} from "./Vm.sol";

/// @dev The fee wallet alone.
contract Till is FeeWallet {
    constructor(address wallet, address owner) FeeWallet(wallet) Ownable(owner) {}

    function feeOf(uint256 amount) external pure returns (uint256) {
        return _feeOf(amount);
    }
}

contract FeeWalletTest is Base {
    uint256 private constant START = 1_800_000_000;
    address private constant OLD = address(0x01d);
    address private constant NEW = address(0x2e3);
    address private constant OUTSIDER = address(0x0D1);
    Till private till;

    function setUp() public {
        vm.warp(START);
        till = new Till(OLD, address(this));
    }

    function _is(address wallet, address proposed, uint256 from) private view {
        require(till.feeWallet() == wallet, "fee wallet");
        require(till.proposedFeeWallet() == proposed, "proposed");
        require(till.feeWalletFrom() == from, "from");
    }

    function test_begins_with_the_wallet_that_is_given() public {
        vm.expectEmit();
        emit FeeWallet.FeeWalletChanged(NEW);
        new Till(NEW, address(this));
        _is(OLD, address(0), 0);
        require(till.FEE_BPS() == 300 && till.FEE_WALLET_DELAY() == 2 days, "constants");
    }

    function test_zero_and_itself_are_refused() public {
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        new Till(address(0), address(this));
        vm.expectRevert(FeeWallet.OwnAddress.selector);
        till.proposeFeeWallet(address(till));
    }

    function test_a_proposal_takes_effect_two_days_later_by_anybody() public {
        vm.expectEmit();
        emit FeeWallet.FeeWalletProposed(NEW, START + 2 days);
        till.proposeFeeWallet(NEW);
        _is(OLD, NEW, START + 2 days);
        vm.warp(START + 2 days - 1);
        vm.expectRevert(abi.encodeWithSelector(FeeWallet.TooEarly.selector, START + 2 days));
        till.acceptFeeWallet();
        vm.warp(START + 2 days);
        vm.expectEmit();
        emit FeeWallet.FeeWalletChanged(NEW);
        vm.prank(OUTSIDER);
        till.acceptFeeWallet();
        _is(NEW, address(0), 0);
        vm.expectRevert(FeeWallet.NoProposal.selector);
        till.acceptFeeWallet();
    }

    function test_a_proposal_is_taken_back() public {
        till.proposeFeeWallet(NEW);
        vm.expectEmit();
        emit FeeWallet.FeeWalletProposed(address(0), 0);
        till.proposeFeeWallet(address(0));
        _is(OLD, address(0), 0);
        vm.warp(START + 3 days);
        vm.expectRevert(FeeWallet.NoProposal.selector);
        till.acceptFeeWallet();
    }

    function test_another_proposal_begins_anew() public {
        till.proposeFeeWallet(NEW);
        vm.warp(START + 2 days);
        till.proposeFeeWallet(OUTSIDER);
        vm.expectRevert(abi.encodeWithSelector(FeeWallet.TooEarly.selector, START + 4 days));
        till.acceptFeeWallet();
        _is(OLD, OUTSIDER, START + 4 days);
    }

    function test_only_the_owner_proposes() public {
        vm.prank(OUTSIDER);
        vm.expectRevert(
            abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, OUTSIDER)
        );
        till.proposeFeeWallet(OUTSIDER);
    }

    function test_a_new_owner_has_to_accept() public {
        till.transferOwnership(NEW);
        require(till.owner() == address(this), "owner before");
        vm.prank(NEW);
        till.acceptOwnership();
        require(till.owner() == NEW, "owner after");
    }

    function test_tolls_at_the_edges() public view {
        require(till.feeOf(0) == 0 && till.feeOf(1) == 0 && till.feeOf(33) == 0, "below one");
        require(till.feeOf(34) == 1 && till.feeOf(66) == 1 && till.feeOf(67) == 2, "rounded down");
        uint256 most = type(uint128).max;
        require(till.feeOf(most) == most / 10_000 * 300 + most % 10_000 * 300 / 10_000, "largest");
    }

    function testFuzz_delay(uint256 wait) public {
        wait = bound(wait, 0, 4 days);
        till.proposeFeeWallet(NEW);
        vm.warp(START + wait);
        if (wait < 2 days) vm.expectRevert();
        till.acceptFeeWallet();
        require(till.feeWallet() == (wait < 2 days ? OLD : NEW), "wallet");
    }
}
