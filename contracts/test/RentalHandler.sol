// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {DevToken} from "../src/DevToken.sol";
import {FeeWallet} from "../src/FeeWallet.sol";
import {Base, Vm} from "./Vm.sol";

/// @dev Several people at several rentals, driven by forge; and a reader who knows the events alone
/// and keeps his own book of every rental and account.
contract RentalHandler is Base {
    uint256 private constant PEOPLE = 4;
    uint64 private constant WINDOW = 3 days;

    ComputeRental public immutable rental;
    DevToken public immutable token;
    address public immutable arbiter;
    address[] public accounts; // whoever can be owed something
    bytes32[] public ids;
    uint256 public gifts;

    // The reader's book.
    mapping(bytes32 id => ComputeRental.Rental) private book;
    mapping(address account => uint256) public bookOwed;
    address public bookFeeWallet;
    uint256 public fees;
    uint256 public nets;
    bool public isReopened;

    uint256[] private keys;

    constructor(ComputeRental rental_, DevToken token_, address arbiter_) {
        (rental, token, arbiter) = (rental_, token_, arbiter_);
        bookFeeWallet = rental_.feeWallet();
        accounts.push(bookFeeWallet);
        accounts.push(address(0xFEE6));
        accounts.push(address(0xBEEF));
        for (uint256 i = 0; i < PEOPLE; ++i) {
            keys.push(0xC0FFEE + i);
            address person = vm.addr(keys[i]);
            accounts.push(person);
            token_.mint(person, type(uint128).max);
            vm.prank(person);
            token_.approve(address(rental_), type(uint256).max);
        }
    }

    /// @dev What the call tells is read when it is done.
    modifier read() {
        vm.recordLogs();
        _;
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].emitter == address(rental)) _read(logs[i]);
        }
    }

    function count() external view returns (uint256, uint256) {
        return (ids.length, accounts.length);
    }

    function bookOf(bytes32 id) external view returns (ComputeRental.Rental memory) {
        return book[id];
    }

    // What people do.

    function lock(uint256 who, uint256 provider, uint256 payee, uint256 amount, uint256 term)
        external
        read
    {
        bytes32 salt = bytes32(ids.length);
        address client = _person(who);
        uint64 deadline = uint64(block.timestamp + bound(term, 1, 20 days));
        vm.prank(client);
        bytes32 id = rental.lock(
            salt,
            _person(provider),
            accounts[payee % accounts.length],
            uint128(bound(amount, 1, amount % 2 == 0 ? 200 : 1e15)),
            deadline,
            salt
        );
        ids.push(id);
    }

    function topUp(uint256 seed, uint256 amount, uint256 more) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        vm.prank(it.client);
        rental.topUp(id, uint128(amount % 100), it.deadline + uint64(more % 3 days));
    }

    function redeem(uint256 seed, uint256 part) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        uint128 least = it.signed > it.paid ? it.signed : it.paid;
        uint128 cumulative = _part(part, least, it.locked);
        rental.redeem(id, cumulative, id, _signed(it.client, _voucher(id, cumulative)));
    }

    function settle(uint256 seed, uint256 part) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        uint128 cumulative = _part(part, it.paid, it.locked);
        bytes memory voucher = _signed(it.client, _voucher(id, cumulative));
        vm.prank(it.provider);
        rental.settle(id, cumulative, id, voucher);
    }

    function release(uint256 seed, uint256 part) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        uint128 cumulative = _part(part, it.paid, it.locked);
        bytes memory consent = _signed(it.provider, rental.releaseDigest(id, cumulative));
        vm.prank(it.client);
        rental.release(id, cumulative, id, consent);
    }

    function refund(uint256 seed) external read {
        (bytes32 id,) = _one(seed);
        rental.refund(id);
    }

    function dispute(uint256 seed, bool byClient) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        vm.prank(byClient ? it.client : it.provider);
        rental.dispute(id);
    }

    function resolve(uint256 seed, uint256 part) external read {
        (bytes32 id, ComputeRental.Rental memory it) = _one(seed);
        vm.prank(arbiter);
        rental.resolve(id, _part(part, it.paid, it.locked));
    }

    function resolveByTimeout(uint256 seed) external read {
        (bytes32 id,) = _one(seed);
        rental.resolveByTimeout(id);
    }

    function withdrawTo(uint256 seed) external read {
        rental.withdrawTo(accounts[seed % accounts.length]);
    }

    function withdrawMany() external read {
        rental.withdrawMany(accounts);
    }

    function changeFeeWallet() external read {
        if (rental.proposedFeeWallet() != address(0)) return rental.acceptFeeWallet();
        address owner = rental.owner();
        address next = rental.feeWallet() == accounts[0] ? accounts[1] : accounts[0];
        vm.prank(owner);
        rental.proposeFeeWallet(next);
    }

    function give(uint256 amount) external read {
        token.mint(address(rental), amount % 50);
        gifts += amount % 50;
    }

    function wait(uint256 time) external read {
        vm.warp(block.timestamp + bound(time, 1, 3 days));
    }

    function _person(uint256 seed) private view returns (address) {
        return vm.addr(keys[seed % PEOPLE]);
    }

    function _one(uint256 seed)
        private
        view
        returns (bytes32 id, ComputeRental.Rental memory it)
    {
        // Three in four of the latest few: older ones are mostly closed.
        uint256 among = seed % 4 == 0 || ids.length < 4 ? ids.length : 4;
        id = ids[ids.length - 1 - (seed / 4) % among];
        it = rental.rentals(id);
    }

    /// @dev Often the ends of what is allowed, at times just beyond.
    function _part(uint256 seed, uint128 least, uint128 most) private pure returns (uint128) {
        if (seed % 5 == 0) return least;
        if (seed % 5 == 1) return most;
        if (seed % 5 == 2) return most + 1;
        return uint128(bound(seed / 5, least, most));
    }

    function _voucher(bytes32 id, uint128 cumulative) private view returns (bytes32) {
        return rental.voucherDigest(id, cumulative, id);
    }

    function _signed(address signer, bytes32 digest) private view returns (bytes memory) {
        for (uint256 i = 0; i < PEOPLE; ++i) {
            if (vm.addr(keys[i]) != signer) continue;
            (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[i], digest);
            return abi.encodePacked(r, s, v);
        }
        revert("nobody's signature");
    }

    // What the reader makes of one event.

    function _read(Vm.Log memory log) private {
        bytes32 kind = log.topics[0];
        if (kind == FeeWallet.FeeWalletChanged.selector) {
            bookFeeWallet = _address(log.topics[1]);
        } else if (kind == ComputeRental.Withdrawn.selector) {
            bookOwed[_address(log.topics[1])] -= abi.decode(log.data, (uint256));
        } else if (kind != FeeWallet.FeeWalletProposed.selector) {
            _readRental(kind, log, book[log.topics[1]]);
        }
    }

    function _readRental(bytes32 kind, Vm.Log memory log, ComputeRental.Rental storage it)
        private
    {
        if (it.state == ComputeRental.State.Closed) isReopened = true;
        if (kind == ComputeRental.Locked.selector) {
            it.client = _address(log.topics[2]);
            it.provider = _address(log.topics[3]);
            it.state = ComputeRental.State.Locked;
            (it.payee, it.locked, it.deadline, it.spec) =
                abi.decode(log.data, (address, uint128, uint64, bytes32));
        } else if (kind == ComputeRental.ToppedUp.selector) {
            uint128 amount;
            uint128 before = it.locked;
            (amount, it.locked, it.deadline) = abi.decode(log.data, (uint128, uint128, uint64));
            require(before + amount == it.locked, "ToppedUp: figures");
        } else if (kind == ComputeRental.Paid.selector) {
            _readPaid(log, it);
        } else if (kind == ComputeRental.Shown.selector) {
            (it.signed,) = abi.decode(log.data, (uint128, bytes32));
        } else if (kind == ComputeRental.Returned.selector) {
            uint128 amount = abi.decode(log.data, (uint128));
            require(amount == it.locked - it.paid, "Returned: figures");
            bookOwed[_address(log.topics[2])] += amount;
        } else if (kind == ComputeRental.Disputed.selector) {
            it.state = ComputeRental.State.Disputed;
            it.disputedAt = uint64(abi.decode(log.data, (uint256))) - WINDOW;
        } else if (kind == ComputeRental.Resolved.selector) {
            (uint128 cumulative,) = abi.decode(log.data, (uint128, bool));
            require(cumulative == it.paid, "Resolved: figures");
        } else if (kind == ComputeRental.Closed.selector) {
            it.state = ComputeRental.State.Closed;
        } else {
            revert("an event that the reader does not know");
        }
    }

    function _readPaid(Vm.Log memory log, ComputeRental.Rental storage it) private {
        (uint256 net, uint256 fee, uint128 cumulative,) =
            abi.decode(log.data, (uint256, uint256, uint128, bytes32));
        require(net + fee == cumulative - it.paid, "Paid: figures");
        it.paid = cumulative;
        bookOwed[_address(log.topics[2])] += net;
        bookOwed[bookFeeWallet] += fee;
        fees += fee;
        nets += net;
    }

    function _address(bytes32 topic) private pure returns (address) {
        return address(uint160(uint256(topic)));
    }
}
