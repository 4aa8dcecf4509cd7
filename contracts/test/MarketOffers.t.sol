// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";

import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {MarketCase, Wallet} from "./MarketCase.t.sol";

/// @dev What a creator signs, and who can make what of it.
contract MarketOffersTest is MarketCase {
    function badSignature() private view returns (bytes memory) {
        return abi.encodeWithSelector(PromptMarketplace.BadSignature.selector, creator);
    }

    function test_an_offer_is_registered_paid_and_handed_over_at_once() public {
        PromptMarketplace.Offer memory offer = offered(10_000);
        bytes memory signature = signed(offer);
        vm.expectEmit();
        emit IERC721.Transfer(address(0), creator, ID);
        vm.expectEmit();
        emit PromptMarketplace.Registered(ID, creator, 500);
        vm.expectEmit();
        emit PromptMarketplace.Sold(ID, creator, BUYER, 10_000, 300, 0);
        vm.expectEmit();
        emit IERC721.Transfer(creator, BUYER, ID);
        vm.prank(BUYER);
        same("id", market.registerAndBuy(offer, signature, 10_000), ID);
        same("owner", market.ownerOf(ID), BUYER);
        same("creator", market.creatorOf(ID), creator);
        owedAre(300, 9_700, 0);
        same("held", token.balanceOf(address(market)), 10_000);
    }

    function test_the_digest_is_eip_712s() public view {
        PromptMarketplace.Offer memory offer = offered(10_000);
        bytes32 domain = keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("PromptMarketplace"),
                keccak256("1"),
                block.chainid,
                address(market)
            )
        );
        bytes32 what = keccak256(
            abi.encode(
                keccak256(
                    "Offer(address creator,bytes32 contentHash,uint128 price,uint96 royaltyBps,uint64 expiry)"
                ),
                offer.creator,
                offer.contentHash,
                offer.price,
                offer.royaltyBps,
                offer.expiry
            )
        );
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", domain, what));
        same("digest", market.digestOf(offer), digest);
    }

    function test_an_offer_is_good_once() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        take(offer, signature, 100);
        bytes4 why = PromptMarketplace.AlreadyRegistered.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, ID, BUYER));
        same("owed once", market.owed(creator), 97);
    }

    function test_an_offer_of_what_is_registered_is_void() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        register(0);
        bytes4 why = PromptMarketplace.AlreadyRegistered.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, ID, creator));
    }

    function test_an_offer_expires() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.warp(offer.expiry + 1);
        bytes4 why = PromptMarketplace.OfferExpired.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, offer.expiry));
        vm.warp(offer.expiry);
        take(offer, signature, 100);
    }

    function test_a_cancelled_offer_is_void_and_so_is_every_later_one() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.prank(STRANGER); // cancels its own only, of which it has none
        market.cancelOffer(HASH);
        vm.expectEmit();
        emit PromptMarketplace.OfferCancelled(creator, HASH);
        vm.prank(creator);
        market.cancelOffer(HASH);
        bytes memory why =
            abi.encodeWithSelector(PromptMarketplace.OfferVoid.selector, creator, HASH);
        takeRefused(offer, signature, 100, why);
        offer.price = 200;
        takeRefused(offer, signed(offer), 200, why);
        register(0); // what it can do then
        list(creator, 200);
        buy(BUYER, 200);
    }

    function test_another_content_of_the_creator_is_not_cancelled() public {
        vm.prank(creator);
        market.cancelOffer(keccak256("another prompt"));
        PromptMarketplace.Offer memory offer = offered(100);
        take(offer, signed(offer), 100);
    }

    function test_a_stranger_cannot_cancel() public {
        vm.prank(STRANGER);
        market.cancelOffer(HASH);
        PromptMarketplace.Offer memory offer = offered(100);
        take(offer, signed(offer), 100);
    }

    function test_every_figure_of_an_offer_is_signed() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        offer.price = 99;
        takeRefused(offer, signature, 100, badSignature());
        offer = offered(100);
        offer.contentHash = keccak256("another prompt");
        takeRefused(offer, signature, 100, badSignature());
        offer = offered(100);
        offer.royaltyBps = 0;
        takeRefused(offer, signature, 100, badSignature());
        offer = offered(100);
        offer.expiry += 1;
        takeRefused(offer, signature, 100, badSignature());
        offer = offered(100);
        offer.creator = STRANGER;
        bytes4 why = PromptMarketplace.BadSignature.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, STRANGER));
        offer.creator = address(0);
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, address(0)));
        takeRefused(offer, "", 100, abi.encodeWithSelector(why, address(0)));
    }

    function test_a_forged_signature_is_refused() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes32 digest = market.digestOf(offer);
        takeRefused(offer, signedBy(0xBAD, digest), 100, badSignature());
        takeRefused(offer, "", 100, badSignature());
        takeRefused(offer, new bytes(65), 100, badSignature());
        // The same signature written another way (a high s) is none.
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CREATOR_KEY, digest);
        uint256 order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
        bytes memory high = abi.encodePacked(r, order - uint256(s), v == 27 ? uint8(28) : 27);
        takeRefused(offer, high, 100, badSignature());
    }

    function test_an_offer_for_another_chain_or_market_is_refused() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.chainId(block.chainid + 1); // a fork: the same market at the same address
        takeRefused(offer, signature, 100, badSignature());
        vm.chainId(block.chainid - 1);
        market = new PromptMarketplace(token, FEES);
        takeRefused(offer, signature, 100, badSignature());
    }

    function test_an_offer_must_be_of_something_for_something() public {
        PromptMarketplace.Offer memory offer = offered(0);
        bytes memory signature = signed(offer);
        bytes4 why = PromptMarketplace.ZeroPrice.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why));
        offer = offered(100);
        offer.contentHash = 0;
        why = PromptMarketplace.ZeroContentHash.selector;
        takeRefused(offer, signed(offer), 100, abi.encodeWithSelector(why));
        offer = offered(100);
        offer.royaltyBps = 1_001;
        why = PromptMarketplace.RoyaltyTooHigh.selector;
        takeRefused(offer, signed(offer), 100, abi.encodeWithSelector(why, 1_001, 1_000));
    }

    function test_an_offer_above_what_was_agreed_is_refused_whole() public {
        PromptMarketplace.Offer memory offer = offered(101);
        bytes4 why = PromptMarketplace.PriceAbove.selector;
        takeRefused(offer, signed(offer), 100, abi.encodeWithSelector(why, 101, 100));
        same("nothing is registered", market.creatorOf(ID), address(0));
    }

    function test_a_creator_does_not_take_its_own_offer() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.prank(creator);
        vm.expectRevert(abi.encodeWithSelector(PromptMarketplace.OwnPurchase.selector, ID));
        market.registerAndBuy(offer, signature, 100);
    }

    function test_who_cannot_pay_gets_nothing_registered() public {
        PromptMarketplace.Offer memory offer = offered(MONEY + 1);
        bytes memory signature = signed(offer);
        vm.prank(BUYER);
        vm.expectRevert();
        market.registerAndBuy(offer, signature, MONEY + 1);
        same("creator", market.creatorOf(ID), address(0));
    }

    function test_a_contract_signs_and_sells_by_erc_1271() public {
        Wallet wallet = new Wallet();
        PromptMarketplace.Offer memory offer = offered(10_000);
        offer.creator = address(wallet);
        bytes memory why = abi.encodeWithSelector(PromptMarketplace.BadSignature.selector, wallet);
        takeRefused(offer, "", 10_000, why);
        wallet.sign(market.digestOf(offer));
        take(offer, "", 10_000);
        same("the wallet's", market.owed(address(wallet)), 9_700);
        same("owner", market.ownerOf(ID), BUYER);
    }

    /// @dev With EIP-7702 an account with a key has code as well: its key still signs.
    function test_a_key_signs_whatever_code_its_account_has() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.etch(creator, address(new Wallet()).code);
        take(offer, signature, 100);
        same("owner", market.ownerOf(ID), BUYER);
    }
}
