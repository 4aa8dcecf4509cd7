// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {
    BlacklistToken,
    FalseToken,
    FeeOnTransferToken,
    ReentrantToken,
    SilentToken
} from "./HostileTokens.sol";
import {MarketCase, Wallet} from "./MarketCase.t.sol";

/// @dev Hostile tokens, hostile receivers: docs/contracts/market.md names these tests.
contract MarketThreatsTest is MarketCase {
    // Receivers.

    /// @dev A contract that would revert in onERC721Received: it is never called.
    function test_a_contract_registers_and_buys_without_a_callback() public {
        Wallet wallet = new Wallet();
        wallet.call(address(market), abi.encodeCall(PromptMarketplace.register, (HASH, 500)));
        same("owner", market.ownerOf(ID), address(wallet));
        wallet.call(address(market), abi.encodeCall(PromptMarketplace.list, (ID, 100)));
        buy(BUYER, 100);
        list(BUYER, 100);
        token.mint(address(wallet), 100);
        wallet.call(address(token), abi.encodeCall(token.approve, (address(market), 100)));
        wallet.call(address(market), abi.encodeCall(PromptMarketplace.buy, (ID, 100)));
        same("owner", market.ownerOf(ID), address(wallet));
    }

    function test_who_is_barred_holds_up_nobody_else() public {
        BlacklistToken hostile = new BlacklistToken();
        useToken(address(hostile));
        resale(500, 10_000);
        hostile.blacklist(FEES, true);
        hostile.blacklist(creator, true);
        hostile.blacklist(SELLER, true);
        buy(BUYER, 10_000); // all three are barred, and it is sold
        bytes4 why = BlacklistToken.Blacklisted.selector;
        vm.expectRevert(abi.encodeWithSelector(why, FEES));
        market.withdrawTo(FEES);
        owedAre(300, 500, 9_200);
        hostile.blacklist(creator, false);
        market.withdrawTo(creator);
        same("creator", hostile.balanceOf(creator), 500);
        hostile.blacklist(FEES, false);
        market.withdrawTo(FEES);
        owedAre(0, 0, 9_200); // it waits for the seller
    }

    function test_a_barred_buyer_does_not_buy() public {
        BlacklistToken hostile = new BlacklistToken();
        useToken(address(hostile));
        resale(500, 10_000);
        hostile.blacklist(BUYER, true);
        bytes4 why = BlacklistToken.Blacklisted.selector;
        buyRefused(BUYER, 10_000, abi.encodeWithSelector(why, BUYER));
        same("owner", market.ownerOf(ID), SELLER);
    }

    // Tokens.

    function test_a_token_that_takes_a_part_is_not_paid_with() public {
        useToken(address(new FeeOnTransferToken()));
        resale(500, 10_000);
        bytes4 why = PromptMarketplace.NotReceived.selector;
        buyRefused(BUYER, 10_000, abi.encodeWithSelector(why, 10_000, 9_900));
        owedAre(0, 0, 0);
        same("owner", market.ownerOf(ID), SELLER);
    }

    function test_a_token_that_says_false_has_not_paid() public {
        FalseToken hostile = new FalseToken();
        useToken(address(hostile));
        resale(500, 10_000);
        buy(BUYER, 10_000);
        list(BUYER, 20_000);
        hostile.lie(true);
        bytes4 why = SafeERC20.SafeERC20FailedOperation.selector;
        buyRefused(SELLER, 20_000, abi.encodeWithSelector(why, hostile));
        vm.expectRevert(abi.encodeWithSelector(why, hostile));
        market.withdrawTo(SELLER);
        owedAre(300, 500, 9_200);
        hostile.lie(false);
        market.withdrawTo(SELLER);
    }

    function test_a_token_that_says_nothing_is_money() public {
        useToken(address(new SilentToken()));
        resale(500, 10_000);
        buy(BUYER, 10_000);
        market.withdrawTo(creator);
        same("creator", token.balanceOf(creator), 500);
    }

    // A token that calls back.

    function reentrant() private returns (ReentrantToken hostile) {
        hostile = new ReentrantToken();
        useToken(address(hostile));
        resale(500, 10_000);
    }

    function refusedWithin(ReentrantToken hostile) private view {
        check("it called", hostile.called());
        check("it was refused", !hostile.succeeded());
        bytes4 why = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
        same("why", bytes32(bytes4(hostile.answer())), bytes32(why));
    }

    /// @dev Money that is on its way: the seller is owed it already, and must not have it yet.
    function test_nothing_is_withdrawn_within_a_sale() public {
        ReentrantToken hostile = reentrant();
        buy(BUYER, 10_000);
        list(BUYER, 10_000);
        hostile.arm(address(market), abi.encodeCall(PromptMarketplace.withdrawTo, (SELLER)));
        rich(STRANGER);
        buy(STRANGER, 10_000);
        refusedWithin(hostile);
        owedAre(600, 1_000, 9_200);
        same("held", hostile.balanceOf(address(market)), 20_000);
    }

    function test_nothing_is_withdrawn_within_a_withdrawal() public {
        ReentrantToken hostile = reentrant();
        buy(BUYER, 10_000);
        hostile.arm(address(market), abi.encodeCall(PromptMarketplace.withdrawTo, (SELLER)));
        market.withdrawTo(SELLER);
        refusedWithin(hostile);
        same("held", hostile.balanceOf(address(market)), 800);
    }

    function test_nothing_is_bought_within_a_sale() public {
        ReentrantToken hostile = reentrant();
        hostile.arm(address(market), abi.encodeCall(PromptMarketplace.buy, (ID, 10_000)));
        buy(BUYER, 10_000);
        refusedWithin(hostile);
    }

    function test_no_offer_is_taken_within_a_sale() public {
        ReentrantToken hostile = reentrant();
        PromptMarketplace.Offer memory offer = offered(100);
        offer.contentHash = keccak256("another prompt");
        hostile.arm(
            address(market),
            abi.encodeCall(PromptMarketplace.registerAndBuy, (offer, signed(offer), 100))
        );
        buy(BUYER, 10_000);
        refusedWithin(hostile);
    }

    /// @dev The sale is written down whole before the token is called: it sees the new owner.
    function test_what_is_open_within_a_sale_finds_it_done() public {
        ReentrantToken hostile = reentrant();
        hostile.arm(address(market), abi.encodeCall(IERC721.ownerOf, (ID)));
        buy(BUYER, 10_000);
        check("it was answered", hostile.succeeded());
        same("owner", abi.decode(hostile.answer(), (address)), BUYER);
    }

    // What is left, shown so that nobody forgets it.

    /// @dev Who sees a hash before it is registered can register it: a manifest that names its
    /// creator says who made it, the token does not.
    function test_a_squatter_can_register_a_hash_it_saw() public {
        PromptMarketplace.Offer memory offer = offered(100);
        bytes memory signature = signed(offer);
        vm.prank(STRANGER);
        market.register(HASH, 1_000);
        bytes4 why = PromptMarketplace.AlreadyRegistered.selector;
        takeRefused(offer, signature, 100, abi.encodeWithSelector(why, ID, STRANGER));
        same("the buyer's money", token.balanceOf(BUYER), MONEY);
    }

    /// @dev A royalty is of sales here: nobody can be made to pay it elsewhere (ERC-2981).
    function test_a_transfer_by_hand_pays_no_royalty() public {
        register(1_000);
        vm.prank(creator);
        market.transferFrom(creator, SELLER, ID);
        vm.prank(SELLER);
        market.transferFrom(SELLER, BUYER, ID);
        owedAre(0, 0, 0);
    }
}
