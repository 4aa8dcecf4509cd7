// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {MarketCase} from "./MarketCase.t.sol";

/// @dev At every price and royalty the parts are the price, and each is what it should be.
contract MarketFuzzTest is MarketCase {
    function parts(uint128 price, uint96 royaltyBps)
        private
        pure
        returns (uint256 fee, uint256 royalty)
    {
        fee = (uint256(price) * 3) / 100;
        royalty = (uint256(price) * royaltyBps) / 10_000;
    }

    function testFuzz_fee_royalty_and_rest_are_the_price(uint128 price, uint96 royaltyBps) public {
        price = uint128(bound(price, 1, type(uint128).max));
        royaltyBps = uint96(bound(royaltyBps, 0, 1_000));
        token.mint(BUYER, price);
        resale(royaltyBps, price);
        buy(BUYER, price);
        (uint256 fee, uint256 royalty) = parts(price, royaltyBps);
        owedAre(fee, royalty, price - fee - royalty);
        same("held", token.balanceOf(address(market)), price);
        if (fee != 0) market.withdrawTo(FEES);
        if (royalty != 0) market.withdrawTo(creator);
        market.withdrawTo(SELLER);
        same("nothing is left", token.balanceOf(address(market)), 0);
    }

    /// @dev Small prices, where rounding is all there is.
    function testFuzz_dust(uint16 price, uint96 royaltyBps) public {
        price = uint16(bound(price, 1, 400));
        royaltyBps = uint96(bound(royaltyBps, 0, 1_000));
        resale(royaltyBps, price);
        buy(BUYER, price);
        (uint256 fee, uint256 royalty) = parts(price, royaltyBps);
        owedAre(fee, royalty, price - fee - royalty);
    }

    function testFuzz_offers(uint128 price, uint96 royaltyBps, uint64 expiry, bytes32 content)
        public
    {
        vm.assume(content != 0);
        price = uint128(bound(price, 1, type(uint128).max));
        royaltyBps = uint96(bound(royaltyBps, 0, 1_000));
        expiry = uint64(bound(expiry, block.timestamp, type(uint64).max));
        token.mint(BUYER, price);
        PromptMarketplace.Offer memory offer =
            PromptMarketplace.Offer(creator, content, price, royaltyBps, expiry);
        take(offer, signed(offer), price);
        (uint256 fee,) = parts(price, royaltyBps);
        owedAre(fee, price - fee, 0);
        same("owner", market.ownerOf(uint256(content)), BUYER);
        (address receiver, uint256 royalty) = market.royaltyInfo(uint256(content), 10_000);
        same("receiver", receiver, creator);
        same("royalty", royalty, royaltyBps);
    }

    function testFuzz_a_price_above_what_was_agreed(uint128 price, uint128 maxPrice) public {
        price = uint128(bound(price, 1, type(uint128).max));
        token.mint(BUYER, price);
        resale(500, price);
        if (price > maxPrice) {
            bytes4 why = PromptMarketplace.PriceAbove.selector;
            buyRefused(BUYER, maxPrice, abi.encodeWithSelector(why, price, maxPrice));
        } else {
            buy(BUYER, maxPrice);
            same("paid", token.balanceOf(address(market)), price);
        }
    }

    function testFuzz_a_changed_offer_is_not_the_creators(uint128 price, uint96 bps, uint64 expiry)
        public
    {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.assume(price != 100 || bps != offer.royaltyBps || expiry != offer.expiry);
        vm.assume(price != 0 && expiry >= block.timestamp);
        (offer.price, offer.royaltyBps, offer.expiry) = (price, bps, expiry);
        bytes4 why = PromptMarketplace.BadSignature.selector;
        takeRefused(offer, signature, price, abi.encodeWithSelector(why, creator));
    }
}
