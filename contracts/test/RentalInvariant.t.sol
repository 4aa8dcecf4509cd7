// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {DevToken} from "../src/DevToken.sol";
import {RentalHandler} from "./RentalHandler.sol";
import {Base} from "./Vm.sol";

/// @dev What holds after any run of calls, and what becomes of the money when all are gone.
contract RentalInvariantTest is Base {
    DevToken private token;
    ComputeRental private rental;
    RentalHandler private handler;

    function setUp() public {
        vm.warp(1_800_000_000);
        token = new DevToken();
        address arbiter = address(0xA4B1);
        rental = new ComputeRental(token, address(0xFEE5), arbiter, 1 days, 3 days);
        handler = new RentalHandler(rental, token, arbiter);
        for (uint256 i = 0; i < 3; ++i) handler.lock(i, i + 1, i, 100 + 50 * i, 5 days);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev One invariant and one pass: forge runs all the calls again for each invariant.
    function invariant_the_books_are_right() public view {
        _the_contract_has_what_it_owes();
        _nothing_happens_to_a_closed_rental();
        _the_events_tell_all();
    }

    function _the_contract_has_what_it_owes() private view {
        uint256 balance = token.balanceOf(address(rental));
        require(balance == rental.totalLiability() + handler.gifts(), "balance");
    }

    /// @dev What is told of each rental and account is so, and the sums over them are right.
    function _the_events_tell_all() private view {
        (uint256 rentals, uint256 accounts) = handler.count();
        uint256 liability;
        uint256 paid;
        uint256 fees;
        for (uint256 i = 0; i < rentals; ++i) {
            bytes32 id = handler.ids(i);
            ComputeRental.Rental memory it = handler.bookOf(id);
            require(keccak256(abi.encode(id, it)) == rental.stateId(id), "a rental is not as told");
            require(it.paid <= it.locked && it.signed <= it.locked, "more than is locked");
            if (it.state != ComputeRental.State.Closed) liability += it.locked - it.paid;
            paid += it.paid;
            fees += (uint256(it.paid) * 3) / 100;
        }
        for (uint256 i = 0; i < accounts; ++i) {
            address account = handler.accounts(i);
            uint256 owed = rental.owed(account);
            require(handler.bookOwed(account) == owed, "what is owed is not as told");
            liability += owed;
        }
        require(handler.bookFeeWallet() == rental.feeWallet(), "fee wallet");
        require(liability == rental.totalLiability(), "liability is not open plus owed");
        require(handler.fees() == fees && handler.nets() == paid - fees, "tolls");
    }

    function _nothing_happens_to_a_closed_rental() private view {
        require(!handler.isReopened(), "reopened");
    }

    /// @dev At the end of each run all people are gone: an outsider ends every rental and sends the
    /// money to its owners.
    function afterInvariant() public {
        (uint256 rentals, uint256 accounts) = handler.count();
        vm.warp(block.timestamp + 400 days);
        for (uint256 i = 0; i < rentals; ++i) {
            bytes32 id = handler.ids(i);
            ComputeRental.State state = rental.rentals(id).state;
            if (state == ComputeRental.State.Locked) rental.refund(id);
            if (state == ComputeRental.State.Disputed) rental.resolveByTimeout(id);
        }
        address[] memory all = new address[](accounts);
        for (uint256 i = 0; i < accounts; ++i) all[i] = handler.accounts(i);
        rental.withdrawMany(all);
        require(rental.totalLiability() == 0, "liability at the end");
        require(token.balanceOf(address(rental)) == handler.gifts(), "balance at the end");
    }
}
