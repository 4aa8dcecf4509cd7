// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";

import {FeeWallet} from "../src/FeeWallet.sol";
import {MarketCase} from "./MarketCase.t.sol";

/// @dev How the fee wallet changes: in the open, and slowly.
contract MarketFeesTest is MarketCase {
    function test_a_fee_wallet_takes_its_place_after_the_delay_by_anybodys_hand() public {
        uint256 from = block.timestamp + 2 days;
        vm.expectEmit();
        emit FeeWallet.FeeWalletProposed(STRANGER, from);
        market.proposeFeeWallet(STRANGER);
        same("not yet", market.feeWallet(), FEES);
        vm.warp(from - 1);
        vm.expectRevert(abi.encodeWithSelector(FeeWallet.TooEarly.selector, from));
        market.acceptFeeWallet();
        vm.warp(from);
        vm.expectEmit();
        emit FeeWallet.FeeWalletChanged(STRANGER);
        vm.prank(BUYER);
        market.acceptFeeWallet();
        same("fee wallet", market.feeWallet(), STRANGER);
        same("proposed", market.proposedFeeWallet(), address(0));
        vm.expectRevert(FeeWallet.NoProposal.selector);
        market.acceptFeeWallet();
    }

    function test_a_proposal_is_taken_back_or_begins_anew() public {
        market.proposeFeeWallet(STRANGER);
        vm.warp(block.timestamp + 2 days);
        market.proposeFeeWallet(BUYER); // another one waits as long again
        vm.expectRevert(
            abi.encodeWithSelector(FeeWallet.TooEarly.selector, block.timestamp + 2 days)
        );
        market.acceptFeeWallet();
        vm.expectEmit();
        emit FeeWallet.FeeWalletProposed(address(0), 0);
        market.proposeFeeWallet(address(0));
        vm.warp(block.timestamp + 2 days);
        vm.expectRevert(FeeWallet.NoProposal.selector);
        market.acceptFeeWallet();
        same("fee wallet", market.feeWallet(), FEES);
    }

    function test_only_the_owner_proposes() public {
        vm.prank(STRANGER);
        vm.expectRevert(
            abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, STRANGER)
        );
        market.proposeFeeWallet(STRANGER);
    }
}
