// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

import {DevToken} from "../src/DevToken.sol";
import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {SilentToken} from "./HostileTokens.sol";
import {Checks} from "./PoolCase.t.sol";

/// @dev A contract that owns, signs and buys, and wants no callback: its fallback reverts.
contract Wallet is IERC1271 {
    bytes32 private signed;

    function sign(bytes32 digest) external {
        signed = digest;
    }

    function call(address target, bytes calldata data) external returns (bytes memory) {
        (bool done, bytes memory answer) = target.call(data);
        require(done, string(answer));
        return answer;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == signed ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

/// @dev A market, a creator with a key, a seller and buyers with money.
abstract contract MarketCase is Checks {
    uint256 internal constant CREATOR_KEY = 0xC0FFEE;
    uint128 internal constant MONEY = 1_000_000_000;
    bytes32 internal constant HASH = keccak256("a prompt");
    uint256 internal constant ID = uint256(HASH);

    address internal constant FEES = address(0xFEE);
    address internal constant SELLER = address(0x5E11);
    address internal constant BUYER = address(0xB4);
    address internal constant STRANGER = address(0x57);

    address internal creator;
    DevToken internal token;
    PromptMarketplace internal market;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        creator = vm.addr(CREATOR_KEY);
        useToken(address(new DevToken()));
    }

    /// @dev A market over a token, hostile or not, and buyers who have it.
    function useToken(address token_) internal {
        token = DevToken(token_);
        market = new PromptMarketplace(token, FEES);
        rich(BUYER);
        rich(SELLER);
    }

    function rich(address buyer) internal {
        token.mint(buyer, MONEY);
        vm.prank(buyer);
        SilentToken(address(token)).approve(address(market), type(uint256).max); // true or nothing
    }

    function register(uint96 royaltyBps) internal {
        vm.prank(creator);
        market.register(HASH, royaltyBps);
    }

    function list(address seller, uint128 price) internal {
        vm.prank(seller);
        market.list(ID, price);
    }

    function buy(address buyer, uint128 maxPrice) internal {
        vm.prank(buyer);
        market.buy(ID, maxPrice);
    }

    /// @dev Registered by the creator and given to the seller, who lists it.
    function resale(uint96 royaltyBps, uint128 price) internal {
        register(royaltyBps);
        vm.prank(creator);
        market.transferFrom(creator, SELLER, ID);
        list(SELLER, price);
    }

    function buyRefused(address buyer, uint128 maxPrice, bytes memory why) internal {
        vm.prank(buyer);
        vm.expectRevert(why);
        market.buy(ID, maxPrice);
    }

    function offered(uint128 price) internal view returns (PromptMarketplace.Offer memory) {
        return PromptMarketplace.Offer(creator, HASH, price, 500, uint64(block.timestamp) + 1 days);
    }

    function signed(PromptMarketplace.Offer memory offer) internal view returns (bytes memory) {
        return signedBy(CREATOR_KEY, market.digestOf(offer));
    }

    function signedBy(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function take(PromptMarketplace.Offer memory offer, bytes memory signature, uint128 maxPrice)
        internal
    {
        vm.prank(BUYER);
        market.registerAndBuy(offer, signature, maxPrice);
    }

    function takeRefused(
        PromptMarketplace.Offer memory offer,
        bytes memory signature,
        uint128 maxPrice,
        bytes memory why
    ) internal {
        vm.prank(BUYER);
        vm.expectRevert(why);
        market.registerAndBuy(offer, signature, maxPrice);
    }

    function owedAre(uint256 fees, uint256 royalty, uint256 seller) internal view {
        same("the fee wallet's", market.owed(FEES), fees);
        same("the creator's", market.owed(creator), royalty);
        same("the seller's", market.owed(SELLER), seller);
    }
}
