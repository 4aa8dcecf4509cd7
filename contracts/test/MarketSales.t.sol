// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {IERC721Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC2981} from "@openzeppelin/contracts/interfaces/IERC2981.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {FeeWallet} from "../src/FeeWallet.sol";
import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {Coarse} from "./PoolCase.t.sol";
import {MarketCase} from "./MarketCase.t.sol";
import {Vm} from "./Vm.sol";

/// @dev Registration, listings, sales and withdrawals.
contract MarketSalesTest is MarketCase {
    // The constructor and what can be asked.

    function test_the_constructor() public {
        same("token", address(market.token()), address(token));
        same("fee wallet", market.feeWallet(), FEES);
        same("owner", market.owner(), address(this));
        check("name", keccak256(bytes(market.name())) == keccak256("Gristmill Prompt"));
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        new PromptMarketplace(token, address(0));
        vm.expectRevert(FeeWallet.ZeroAddress.selector);
        new PromptMarketplace(IERC20(address(0)), FEES);
        vm.expectRevert(FeeWallet.OwnAddress.selector);
        market.proposeFeeWallet(address(market));
    }

    function test_only_a_token_of_six_decimals_is_paid_with() public {
        IERC20 coarse = IERC20(address(new Coarse()));
        bytes4 why = PromptMarketplace.WrongDecimals.selector;
        vm.expectRevert(abi.encodeWithSelector(why, 18, 6));
        new PromptMarketplace(coarse, FEES);
    }

    function test_what_it_is_and_is_not() public view {
        check("ERC-165", market.supportsInterface(0x01ffc9a7));
        check("ERC-721", market.supportsInterface(type(IERC721).interfaceId));
        check("ERC-2981", market.supportsInterface(type(IERC2981).interfaceId));
        check("nothing else", !market.supportsInterface(0xffffffff));
    }

    // Register.

    function test_the_first_who_registers_a_content_has_its_token() public {
        vm.expectEmit();
        emit IERC721.Transfer(address(0), creator, ID);
        vm.expectEmit();
        emit PromptMarketplace.Registered(ID, creator, 500);
        vm.prank(creator);
        same("id", market.register(HASH, 500), ID);
        same("owner", market.ownerOf(ID), creator);
        same("creator", market.creatorOf(ID), creator);
        (address receiver, uint256 royalty) = market.royaltyInfo(ID, 10_000);
        same("receiver", receiver, creator);
        same("royalty", royalty, 500);
    }

    function test_a_content_is_registered_once() public {
        register(500);
        bytes4 why = PromptMarketplace.AlreadyRegistered.selector;
        vm.prank(STRANGER);
        vm.expectRevert(abi.encodeWithSelector(why, ID, creator));
        market.register(HASH, 0);
        vm.prank(creator);
        market.transferFrom(creator, SELLER, ID);
        vm.prank(creator);
        vm.expectRevert(abi.encodeWithSelector(why, ID, SELLER));
        market.register(HASH, 500);
    }

    function test_a_forgotten_hash_and_a_greedy_royalty_are_refused() public {
        vm.expectRevert(PromptMarketplace.ZeroContentHash.selector);
        market.register(0, 0);
        bytes4 why = PromptMarketplace.RoyaltyTooHigh.selector;
        vm.expectRevert(abi.encodeWithSelector(why, 1_001, 1_000));
        market.register(HASH, 1_001);
        vm.expectRevert(abi.encodeWithSelector(why, type(uint96).max, 1_000));
        market.register(HASH, type(uint96).max);
        market.register(HASH, 1_000);
    }

    function test_a_creator_without_a_royalty_is_known_too() public {
        register(0);
        same("creator", market.creatorOf(ID), creator);
        same("nobody's", market.creatorOf(1), address(0));
    }

    // List, unlist.

    function test_an_owner_lists_at_a_price_and_at_another() public {
        register(0);
        vm.expectEmit();
        emit PromptMarketplace.Listed(ID, creator, 100);
        list(creator, 100);
        same("price", market.priceOf(ID), 100);
        list(creator, 200);
        same("price", market.priceOf(ID), 200);
        same("still its owner's", market.ownerOf(ID), creator);
    }

    function test_only_the_owner_lists_and_unlists() public {
        register(0);
        bytes memory why =
            abi.encodeWithSelector(PromptMarketplace.NotTokenOwner.selector, ID, creator);
        vm.prank(creator);
        market.approve(STRANGER, ID); // may move it, not sell it
        vm.startPrank(STRANGER);
        vm.expectRevert(why);
        market.list(ID, 1);
        vm.stopPrank();
        list(creator, 100);
        vm.prank(STRANGER);
        vm.expectRevert(why);
        market.unlist(ID);
        same("price", market.priceOf(ID), 100);
    }

    function test_what_is_not_there_is_not_listed() public {
        bytes memory why =
            abi.encodeWithSelector(IERC721Errors.ERC721NonexistentToken.selector, ID);
        vm.expectRevert(why);
        market.list(ID, 1);
        vm.expectRevert(why);
        market.unlist(ID);
        buyRefused(BUYER, 1, why);
    }

    function test_a_price_of_zero_is_refused() public {
        register(0);
        vm.prank(creator);
        vm.expectRevert(PromptMarketplace.ZeroPrice.selector);
        market.list(ID, 0);
    }

    function test_an_unlisted_token_is_not_sold() public {
        register(0);
        bytes memory why = abi.encodeWithSelector(PromptMarketplace.NotListed.selector, ID);
        vm.prank(creator);
        vm.expectRevert(why);
        market.unlist(ID);
        list(creator, 100);
        vm.expectEmit();
        emit PromptMarketplace.Unlisted(ID);
        vm.prank(creator);
        market.unlist(ID);
        buyRefused(BUYER, 100, why);
    }

    function test_a_token_that_is_given_away_is_not_for_sale() public {
        register(0);
        list(creator, 100);
        vm.expectEmit();
        emit PromptMarketplace.Unlisted(ID);
        vm.prank(creator);
        market.transferFrom(creator, SELLER, ID);
        same("price", market.priceOf(ID), 0);
        bytes memory why = abi.encodeWithSelector(PromptMarketplace.NotListed.selector, ID);
        buyRefused(BUYER, 100, why);
        vm.prank(SELLER); // nor is it when it comes back
        market.transferFrom(SELLER, creator, ID);
        buyRefused(BUYER, 100, why);
    }

    // Buy.

    function test_a_creators_sale() public {
        register(1_000);
        list(creator, 10_000);
        vm.expectEmit();
        emit PromptMarketplace.Sold(ID, creator, BUYER, 10_000, 300, 0);
        vm.expectEmit();
        emit IERC721.Transfer(creator, BUYER, ID);
        buy(BUYER, 10_000);
        same("owner", market.ownerOf(ID), BUYER);
        same("creator", market.creatorOf(ID), creator);
        same("price", market.priceOf(ID), 0);
        owedAre(300, 9_700, 0); // no royalty of one's own sale
        same("the buyer's money", token.balanceOf(BUYER), MONEY - 10_000);
    }

    function test_a_later_sale_pays_the_creator() public {
        resale(500, 10_000);
        vm.expectEmit();
        emit PromptMarketplace.Sold(ID, SELLER, BUYER, 10_000, 300, 500);
        buy(BUYER, type(uint128).max);
        same("owner", market.ownerOf(ID), BUYER);
        owedAre(300, 500, 9_200);
        same("held", token.balanceOf(address(market)), 10_000);
    }

    function test_a_sale_is_no_unlisting() public {
        resale(500, 10_000);
        vm.recordLogs();
        buy(BUYER, 10_000);
        bytes32 unlisted = PromptMarketplace.Unlisted.selector;
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            check("Unlisted", logs[i].topics[0] != unlisted);
        }
    }

    function test_the_split_at_the_prices_where_it_turns() public {
        splits(1, 1_000, 0, 0);
        splits(9, 1_000, 0, 0);
        splits(10, 1_000, 0, 1);
        splits(33, 1_000, 0, 3);
        splits(34, 1_000, 1, 3);
        splits(34, 0, 1, 0);
        splits(66, 100, 1, 0);
        splits(67, 100, 2, 0);
        uint128 most = type(uint128).max;
        splits(most, 1_000, (uint256(most) * 3) / 100, uint256(most) / 10);
    }

    /// @dev In a market of its own, with a buyer who can pay.
    function splits(uint128 price, uint96 royaltyBps, uint256 fee, uint256 royalty) private {
        useToken(address(token));
        token.mint(BUYER, price);
        resale(royaltyBps, price);
        buy(BUYER, price);
        owedAre(fee, royalty, price - fee - royalty);
    }

    function test_a_price_above_what_was_agreed_is_refused() public {
        resale(500, 10_000);
        bytes4 why = PromptMarketplace.PriceAbove.selector;
        buyRefused(BUYER, 9_999, abi.encodeWithSelector(why, 10_000, 9_999));
        list(SELLER, 20_000); // in front of the buyer's transaction
        buyRefused(BUYER, 10_000, abi.encodeWithSelector(why, 20_000, 10_000));
        list(SELLER, 5_000);
        buy(BUYER, 10_000); // and it pays no more than is asked
        same("the buyer's money", token.balanceOf(BUYER), MONEY - 5_000);
    }

    function test_nobody_buys_from_himself() public {
        resale(500, 100);
        bytes memory why = abi.encodeWithSelector(PromptMarketplace.OwnPurchase.selector, ID);
        buyRefused(SELLER, 100, why);
    }

    function test_it_is_sold_once() public {
        resale(500, 100);
        buy(BUYER, 100);
        rich(STRANGER);
        bytes memory why = abi.encodeWithSelector(PromptMarketplace.NotListed.selector, ID);
        buyRefused(STRANGER, 100, why);
        list(BUYER, 300);
        buy(STRANGER, 300);
        same("owner", market.ownerOf(ID), STRANGER);
        same("the creator's, twice", market.owed(creator), 5 + 15);
    }

    function test_who_cannot_pay_does_not_get_it() public {
        resale(500, MONEY + 1);
        vm.prank(BUYER);
        vm.expectRevert();
        market.buy(ID, MONEY + 1);
        same("owner", market.ownerOf(ID), SELLER);
        same("price", market.priceOf(ID), MONEY + 1);
        owedAre(0, 0, 0);
    }

    /// @dev Who was allowed to move it for the seller is not allowed to move it for the buyer.
    function test_a_sellers_approval_ends_with_the_sale() public {
        resale(500, 100);
        vm.prank(SELLER);
        market.approve(STRANGER, ID);
        buy(BUYER, 100);
        same("approved", market.getApproved(ID), address(0));
    }

    function test_the_creator_who_sells_it_again_pays_itself_no_royalty() public {
        resale(500, 10_000);
        token.mint(creator, 10_000);
        vm.prank(creator);
        token.approve(address(market), 10_000);
        buy(creator, 10_000); // bought back: the royalty is its own
        owedAre(300, 500, 9_200);
        list(creator, 10_000);
        buy(BUYER, 10_000);
        owedAre(600, 500 + 9_700, 9_200);
    }

    // WithdrawTo.

    function test_anybody_sends_an_account_what_it_is_owed() public {
        resale(500, 10_000);
        buy(BUYER, 10_000);
        vm.expectEmit();
        emit PromptMarketplace.Withdrawn(FEES, 300);
        vm.prank(STRANGER);
        market.withdrawTo(FEES);
        market.withdrawTo(creator);
        uint256 before = token.balanceOf(SELLER);
        market.withdrawTo(SELLER);
        same("fees", token.balanceOf(FEES), 300);
        same("creator", token.balanceOf(creator), 500);
        same("seller", token.balanceOf(SELLER) - before, 9_200);
        same("held", token.balanceOf(address(market)), 0);
        owedAre(0, 0, 0);
    }

    function test_nothing_is_withdrawn_twice() public {
        resale(500, 10_000);
        buy(BUYER, 10_000);
        market.withdrawTo(SELLER);
        vm.expectRevert(
            abi.encodeWithSelector(PromptMarketplace.NothingOwed.selector, SELLER)
        );
        market.withdrawTo(SELLER);
    }

    // The fee wallet.

    function test_the_fee_is_owed_to_the_wallet_at_the_sale() public {
        resale(500, 10_000);
        market.proposeFeeWallet(STRANGER);
        vm.warp(block.timestamp + 2 days);
        market.acceptFeeWallet(); // between listing and sale
        buy(BUYER, 10_000);
        owedAre(0, 500, 9_200);
        same("the new wallet's", market.owed(STRANGER), 300);
        market.proposeFeeWallet(FEES);
        same("what it is owed stays its own", market.owed(STRANGER), 300);
    }
}
