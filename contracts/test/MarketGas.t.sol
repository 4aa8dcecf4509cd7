// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {MarketCase} from "./MarketCase.t.sol";

/// @dev What operations cost who sends them, as a receipt would say (`--isolate`: each call is a
/// transaction). tests/contracts/gas.py compares the figures with contracts/gas-snapshot.
contract MarketGasTest is MarketCase {
    function note(string memory name) private {
        vm.snapshotGasLastCall("PromptMarketplace", name);
    }

    function test_gas_sales() public {
        register(500);
        note("register");
        list(creator, 10_000);
        note("list");
        list(creator, 20_000);
        note("list, another price");
        vm.prank(creator);
        market.unlist(ID);
        note("unlist");
        list(creator, 10_000);
        buy(BUYER, 10_000);
        note("buy, the market's first");
        market.withdrawTo(creator);
        note("withdrawTo, to a new account");
        list(BUYER, 10_000);
        buy(SELLER, 10_000);
        list(SELLER, 10_000);
        buy(BUYER, 10_000);
        note("buy with a royalty, all accounts known");
        market.withdrawTo(SELLER);
        note("withdrawTo");
    }

    function test_gas_offers() public {
        PromptMarketplace.Offer memory offer = offered(10_000);
        bytes memory signature = signed(offer);
        take(offer, signature, 10_000);
        note("registerAndBuy, the market's first");
        offer.contentHash = keccak256("another prompt");
        signature = signed(offer);
        take(offer, signature, 10_000);
        note("registerAndBuy");
        vm.prank(creator);
        market.cancelOffer(HASH);
        note("cancelOffer");
    }

    function test_gas_fee_wallet() public {
        market.proposeFeeWallet(STRANGER);
        note("proposeFeeWallet");
        vm.warp(block.timestamp + 2 days);
        market.acceptFeeWallet();
        note("acceptFeeWallet");
    }
}
