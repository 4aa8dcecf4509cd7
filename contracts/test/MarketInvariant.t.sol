// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PromptMarketplace} from "../src/PromptMarketplace.sol";
import {BlacklistToken} from "./HostileTokens.sol";
import {MarketCase} from "./MarketCase.t.sol";
import {Base} from "./Vm.sol";

/// @dev A few people who register, list, give, buy, offer, cancel and withdraw in any order.
contract MarketHandler is Base {
    uint256 public constant PEOPLE = 4;
    uint256 public constant PROMPTS = 12;
    BlacklistToken private immutable TOKEN;
    PromptMarketplace private immutable MARKET;

    /// @dev Our own books: who has which token, who asks what, who is owed what.
    mapping(uint256 prompt => address) public ownerOf;
    mapping(uint256 prompt => uint128) public priceOf;
    mapping(uint256 prompt => address) private creatorOf;
    mapping(uint256 prompt => uint96) private royaltyOf;
    mapping(address account => uint256) public owed;
    address[PEOPLE] private people;
    address[] private wallets;
    uint256 public sales;
    /// @dev What was seen and must not be.
    string public fault;

    constructor(BlacklistToken token, PromptMarketplace market) {
        (TOKEN, MARKET) = (token, market);
        wallets.push(market.feeWallet());
        for (uint256 i; i < PEOPLE; ++i) {
            people[i] = vm.addr(key(i));
            token.mint(person(i), 1e15);
            vm.prank(person(i));
            token.approve(address(market), type(uint256).max);
        }
    }

    function person(uint256 i) public view returns (address) {
        return people[i % PEOPLE];
    }

    function key(uint256 i) private pure returns (uint256) {
        return 0x1000 + (i % PEOPLE);
    }

    function idOf(uint256 prompt) public pure returns (uint256) {
        return uint256(keccak256(abi.encode("prompt", prompt % PROMPTS)));
    }

    function register(uint256 who, uint256 prompt, uint96 royaltyBps) external {
        royaltyBps %= 1_001;
        vm.prank(person(who));
        MARKET.register(bytes32(idOf(prompt)), royaltyBps);
        registered(prompt % PROMPTS, person(who), royaltyBps);
    }

    function list(uint256 prompt, uint128 price) public {
        prompt %= PROMPTS;
        price = uint128(bound(price, 1, 1e12));
        vm.prank(ownerOf[prompt]);
        MARKET.list(idOf(prompt), price);
        priceOf[prompt] = price;
    }

    function unlist(uint256 prompt) external {
        prompt %= PROMPTS;
        vm.prank(ownerOf[prompt]);
        MARKET.unlist(idOf(prompt));
        priceOf[prompt] = 0;
    }

    function give(uint256 prompt, uint256 to) external {
        prompt %= PROMPTS;
        if (ownerOf[prompt] == address(0)) return; // whom no transaction is from
        vm.prank(ownerOf[prompt]);
        MARKET.transferFrom(ownerOf[prompt], person(to), idOf(prompt));
        (ownerOf[prompt], priceOf[prompt]) = (person(to), 0);
    }

    /// @dev Somebody who is not the owner tries to list, unlist or move: it must fail.
    function steal(uint256 prompt, uint256 who, uint256 how) external {
        prompt %= PROMPTS;
        address thief = person(who);
        address owner = ownerOf[prompt];
        if (thief == owner) return;
        bytes memory theft = how % 3 == 0
            ? abi.encodeCall(MARKET.list, (idOf(prompt), 1))
            : how % 3 == 1
                ? abi.encodeCall(MARKET.unlist, (idOf(prompt)))
                : abi.encodeCall(MARKET.transferFrom, (owner, thief, idOf(prompt)));
        vm.prank(thief);
        (bool done,) = address(MARKET).call(theft);
        if (done) fault = "somebody else's token was listed, unlisted or moved";
    }

    function buy(uint256 prompt, uint256 who, uint128 maxPrice) external {
        prompt %= PROMPTS;
        if (priceOf[prompt] == 0 && maxPrice % 2 == 0) list(prompt, maxPrice);
        uint128 price = priceOf[prompt];
        if (maxPrice % 4 != 3) maxPrice = type(uint128).max;
        else maxPrice = uint128(bound(maxPrice, 0, 2 * uint256(price)));
        vm.prank(person(who));
        MARKET.buy(idOf(prompt), maxPrice);
        if (price > maxPrice) fault = "dearer than agreed";
        if (price == 0) fault = "sold without a price";
        sold(prompt, person(who), price);
    }

    function offer(uint256 prompt, uint256 who, uint256 buyer, uint128 price) external {
        prompt %= PROMPTS;
        price = uint128(bound(price, 1, 1e12));
        PromptMarketplace.Offer memory offer_ = PromptMarketplace.Offer(
            person(who), bytes32(idOf(prompt)), price, 700, uint64(block.timestamp)
        );
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key(who), MARKET.digestOf(offer_));
        vm.prank(person(buyer));
        MARKET.registerAndBuy(offer_, abi.encodePacked(r, s, v), price);
        if (cancelled[person(who)][prompt]) fault = "a cancelled offer was taken";
        registered(prompt, person(who), 700);
        sold(prompt, person(buyer), price);
    }

    mapping(address creator => mapping(uint256 prompt => bool)) private cancelled;

    /// @dev Seldom: it is for ever.
    function cancel(uint256 prompt, uint256 who) external {
        if (who % 2 != 1) return;
        vm.prank(person(who));
        MARKET.cancelOffer(bytes32(idOf(prompt)));
        cancelled[person(who)][prompt % PROMPTS] = true;
    }

    function withdraw(uint256 who) external {
        address account = who % 5 == 4 ? wallets[who % wallets.length] : person(who);
        uint256 before = TOKEN.balanceOf(account);
        MARKET.withdrawTo(account);
        if (TOKEN.balanceOf(account) - before != owed[account]) fault = "not what was owed";
        owed[account] = 0;
    }

    function bar(uint256 who, uint256 barred) external {
        TOKEN.blacklist(person(who), barred % 4 == 3);
    }

    function changeFeeWallet(uint160 wallet) external {
        vm.prank(MARKET.owner());
        MARKET.proposeFeeWallet(address(0xFEE0 + (wallet % 3)));
        vm.warp(block.timestamp + 2 days);
        MARKET.acceptFeeWallet();
        wallets.push(MARKET.feeWallet());
    }

    function registered(uint256 prompt, address creator, uint96 royaltyBps) private {
        if (ownerOf[prompt] != address(0)) fault = "registered twice";
        (ownerOf[prompt], creatorOf[prompt], royaltyOf[prompt]) = (creator, creator, royaltyBps);
    }

    function sold(uint256 prompt, address buyer, uint128 price) private {
        address seller = ownerOf[prompt];
        if (seller == buyer) fault = "sold to oneself";
        uint256 fee = (uint256(price) * 3) / 100;
        uint256 royalty =
            seller == creatorOf[prompt] ? 0 : (uint256(price) * royaltyOf[prompt]) / 10_000;
        owed[MARKET.feeWallet()] += fee;
        owed[creatorOf[prompt]] += royalty;
        owed[seller] += price - fee - royalty;
        (ownerOf[prompt], priceOf[prompt]) = (buyer, 0);
        ++sales;
    }
}

/// @dev What holds after every call of anybody.
contract MarketInvariantTest is MarketCase {
    MarketHandler private handler;

    function setUp() public override {
        super.setUp();
        BlacklistToken hostile = new BlacklistToken();
        useToken(address(hostile));
        handler = new MarketHandler(hostile, market);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev Fee wallets are three at most beside the first, and each is counted once.
    function invariant_the_market_holds_what_it_owes() public view {
        uint256 total = owedIsAsBooked(FEES);
        for (uint160 i; i < 3; ++i) {
            total += owedIsAsBooked(address(0xFEE0 + i));
        }
        for (uint256 i; i < handler.PEOPLE(); ++i) {
            total += owedIsAsBooked(handler.person(i));
        }
        same("balance", token.balanceOf(address(market)), total);
    }

    function owedIsAsBooked(address account) private view returns (uint256 amount) {
        amount = market.owed(account);
        same("owed", amount, handler.owed(account));
    }

    function invariant_each_token_has_its_owner_and_his_price() public view {
        uint256[] memory balances = new uint256[](handler.PEOPLE());
        for (uint256 i; i < handler.PROMPTS(); ++i) {
            uint256 id = handler.idOf(i);
            address owner = handler.ownerOf(i);
            same("price", market.priceOf(id), handler.priceOf(i));
            if (owner == address(0)) {
                same("no creator", market.creatorOf(id), address(0));
                continue;
            }
            same("owner", market.ownerOf(id), owner);
            for (uint256 k; k < balances.length; ++k) {
                if (handler.person(k) == owner) ++balances[k];
            }
        }
        for (uint256 k; k < balances.length; ++k) {
            same("tokens", market.balanceOf(handler.person(k)), balances[k]);
        }
    }

    function invariant_nothing_that_must_not_be_was_seen() public view {
        string memory fault = handler.fault();
        check(fault, bytes(fault).length == 0);
    }

    /// @dev The calls above reach what they are to try.
    function test_the_handler_sells() public {
        handler.register(0, 0, 500);
        handler.list(0, 999); // the price is one more
        handler.buy(0, 1, 0);
        handler.list(0, 1_999);
        handler.buy(0, 2, 0);
        handler.offer(1, 3, 0, 500);
        same("sales", handler.sales(), 3);
        same("owed to the creator", market.owed(handler.person(0)), 970 + 100);
        handler.withdraw(0);
        invariant_the_market_holds_what_it_owes();
        invariant_each_token_has_its_owner_and_his_price();
        invariant_nothing_that_must_not_be_was_seen();
    }
}
