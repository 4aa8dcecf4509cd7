// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {RentalBase, Wallet} from "./RentalBase.sol";

/// @dev redeem, settle and release, and the signatures that they look at.
contract RentalPayTest is RentalBase {
    function test_redeem_pays_97_to_3_and_later_only_what_is_new() public {
        bytes32 id = _lock();
        bytes memory first = _voucher(id, 100);
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 97, 3, 100, ROOT);
        vm.prank(outsider);
        rental.redeem(id, 100, ROOT, first);
        _isOwed(97, 3, 0, 900);
        bytes memory second = _voucher(id, 101);
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 1, 0, 101, ROOT);
        rental.redeem(id, 101, ROOT, second);
        _isOwed(98, 3, 0, 899);
        _same(rental.rentals(id).paid, 101, "paid");
        _isState(id, ComputeRental.State.Locked);
    }

    function test_redeem_of_all_leaves_the_rental_open_for_more() public {
        bytes32 id = _lock();
        _redeem(id, AMOUNT);
        _isState(id, ComputeRental.State.Locked);
        vm.prank(client);
        rental.topUp(id, 100, DEADLINE);
        _redeem(id, AMOUNT + 100);
        _isOwed(1067, 33, 0, 0);
        vm.warp(REFUND);
        rental.refund(id);
        _isState(id, ComputeRental.State.Closed);
        _isOwed(1067, 33, 0, 0);
    }

    function test_replayed_and_lower_vouchers_say_the_figures() public {
        bytes32 id = _lock();
        bytes memory hundred = _voucher(id, 100);
        bytes memory lower = _voucher(id, 99);
        bytes memory zero = _voucher(id, 0);
        bytes memory more = _voucher(id, AMOUNT + 1);
        _failsCumulative(0, 1, AMOUNT);
        rental.redeem(id, 0, ROOT, zero);
        rental.redeem(id, 100, ROOT, hundred);
        _failsCumulative(100, 101, AMOUNT);
        rental.redeem(id, 100, ROOT, hundred);
        _failsCumulative(99, 101, AMOUNT);
        rental.redeem(id, 99, ROOT, lower);
        _failsCumulative(AMOUNT + 1, 101, AMOUNT);
        rental.redeem(id, AMOUNT + 1, ROOT, more);
        _isOwed(97, 3, 0, 900);
    }

    function test_vouchers_of_others_and_of_elsewhere_are_nothing() public {
        bytes32 id = _lock();
        bytes32 other = _lock("other", AMOUNT);
        address verifier = address(rental);
        uint256 chain = block.chainid;
        bytes[6] memory bad = [
            _voucher(PROVIDER_KEY, verifier, chain, id, 100, ROOT),
            _voucher(CLIENT_KEY, address(token), chain, id, 100, ROOT),
            _voucher(CLIENT_KEY, verifier, chain + 1, id, 100, ROOT),
            _voucher(CLIENT_KEY, verifier, chain, other, 100, ROOT),
            _voucher(CLIENT_KEY, verifier, chain, id, 101, ROOT),
            _voucher(CLIENT_KEY, verifier, chain, id, 100, "another root")
        ];
        for (uint256 i = 0; i < bad.length; ++i) {
            _failsSignature(client);
            rental.redeem(id, 100, ROOT, bad[i]);
            vm.prank(provider);
            _failsSignature(client);
            rental.settle(id, 100, ROOT, bad[i]);
        }
        _failsSignature(client);
        rental.redeem(id, 100, ROOT, "");
        bytes memory consent = _consent(CLIENT_KEY, id, 100);
        _failsSignature(client);
        rental.redeem(id, 100, ROOT, consent);
        _isOwed(0, 0, 0, 2 * AMOUNT);
    }

    function test_a_fork_of_the_chain_takes_no_voucher_of_this_one() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 100);
        vm.chainId(block.chainid + 1);
        _failsSignature(client);
        rental.redeem(id, 100, ROOT, voucher);
        _redeem(id, 100);
    }

    function test_digests_are_those_of_the_eip() public {
        bytes32 id = _lock();
        bytes memory voucher = _sign(CLIENT_KEY, rental.voucherDigest(id, 7, ROOT));
        require(keccak256(voucher) == keccak256(_voucher(id, 7)), "voucherDigest");
        bytes memory consent = _sign(PROVIDER_KEY, rental.releaseDigest(id, 7));
        require(keccak256(consent) == keccak256(_consent(PROVIDER_KEY, id, 7)), "releaseDigest");
    }

    function test_redeem_needs_an_open_rental() public {
        bytes32 id = rental.rentalId(client, SALT);
        bytes memory early = _voucher(id, 100);
        _failsState(id, ComputeRental.State.None);
        rental.redeem(id, 100, ROOT, early);
        _lock();
        vm.prank(client);
        rental.release(id, AMOUNT, ROOT, "");
        _failsState(id, ComputeRental.State.Closed);
        rental.redeem(id, 100, ROOT, early);
    }

    function test_a_voucher_counts_until_the_rental_is_closed() public {
        bytes32 id = _lock();
        vm.warp(REFUND + 100 days);
        _redeem(id, 100);
        rental.refund(id);
        _isOwed(97, 3, 900, 0);
    }

    function test_settle_pays_and_gives_the_rest_back_at_once() public {
        bytes32 id = _lock();
        _redeem(id, 50);
        bytes memory voucher = _voucher(id, 400);
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 339, 11, 400, ROOT); // 12 - 1
        vm.expectEmit();
        emit ComputeRental.Returned(id, client, 600);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        vm.prank(provider);
        rental.settle(id, 400, ROOT, voucher);
        _isOwed(388, 12, 600, 0);
        _isState(id, ComputeRental.State.Closed);
    }

    function test_settle_of_nothing_new_needs_no_signature() public {
        bytes32 id = _lock();
        _redeem(id, 400);
        vm.prank(provider);
        rental.settle(id, 400, ROOT, "");
        _isOwed(388, 12, 600, 0);
        bytes32 untouched = _lock("untouched", 7);
        vm.prank(provider);
        rental.settle(untouched, 0, ROOT, "");
        _isOwed(388, 12, 607, 0);
    }

    function test_settle_after_somebody_brought_the_same_voucher() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 400);
        vm.prank(outsider);
        rental.redeem(id, 400, ROOT, voucher);
        vm.prank(provider);
        rental.settle(id, 400, ROOT, voucher);
        _isOwed(388, 12, 600, 0);
    }

    function test_settle_of_all_returns_nothing() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, AMOUNT);
        vm.recordLogs();
        vm.prank(provider);
        rental.settle(id, AMOUNT, ROOT, voucher);
        _same(vm.getRecordedLogs().length, 2, "events: Paid and Closed");
        _isOwed(970, 30, 0, 0);
    }

    function test_settle_refuses() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 400);
        address[4] memory others = [client, payee, arbiter, outsider];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.prank(others[i]);
            _failsCaller(id, others[i]);
            rental.settle(id, 400, ROOT, voucher);
        }
        _redeem(id, 500);
        bytes memory more = _voucher(id, AMOUNT + 1);
        vm.startPrank(provider);
        _failsCumulative(400, 501, AMOUNT);
        rental.settle(id, 400, ROOT, voucher);
        _failsCumulative(AMOUNT + 1, 501, AMOUNT);
        rental.settle(id, AMOUNT + 1, ROOT, more);
        rental.settle(id, 500, ROOT, "");
        _failsState(id, ComputeRental.State.Closed);
        rental.settle(id, 500, ROOT, "");
    }

    function test_release_of_all_is_the_clients_own() public {
        bytes32 id = _lock();
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 970, 30, AMOUNT, ROOT);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        vm.prank(client);
        rental.release(id, AMOUNT, ROOT, "");
        _isOwed(970, 30, 0, 0);
        _isState(id, ComputeRental.State.Closed);
    }

    function test_release_takes_back_with_the_providers_word_only() public {
        bytes32 id = _lock();
        bytes memory consent = _consent(PROVIDER_KEY, id, 400);
        bytes memory own = _consent(CLIENT_KEY, id, 400);
        bytes memory other = _consent(PROVIDER_KEY, _lock("other", 1), 400);
        bytes memory voucher =
            _voucher(PROVIDER_KEY, address(rental), block.chainid, id, 400, ROOT);
        vm.startPrank(client);
        _failsSignature(provider);
        rental.release(id, 400, ROOT, "");
        _failsSignature(provider);
        rental.release(id, 400, ROOT, own);
        _failsSignature(provider);
        rental.release(id, 400, ROOT, other);
        _failsSignature(provider);
        rental.release(id, 400, ROOT, voucher);
        _failsSignature(provider);
        rental.release(id, 399, ROOT, consent);
        vm.expectEmit();
        emit ComputeRental.Paid(id, payee, 388, 12, 400, ROOT);
        vm.expectEmit();
        emit ComputeRental.Returned(id, client, 600);
        vm.expectEmit();
        emit ComputeRental.Closed(id);
        rental.release(id, 400, ROOT, consent);
        _isOwed(388, 12, 600, 1);
    }

    /// @dev Without the provider's word a client would get work on vouchers and take all back
    /// before they are brought.
    function test_release_does_not_rob_vouchers_that_were_not_brought() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 900);
        vm.prank(client);
        _failsSignature(provider);
        rental.release(id, 0, ROOT, "");
        rental.redeem(id, 900, ROOT, voucher);
        _isOwed(873, 27, 0, 100);
    }

    function test_release_of_nothing_new_returns_the_rest() public {
        bytes32 id = _lock();
        _redeem(id, 400);
        bytes memory consent = _consent(PROVIDER_KEY, id, 400);
        vm.prank(client);
        rental.release(id, 400, ROOT, consent);
        _isOwed(388, 12, 600, 0);
    }

    function test_release_refuses() public {
        bytes32 id = _lock();
        bytes memory consent = _consent(PROVIDER_KEY, id, 400);
        address[4] memory others = [provider, payee, arbiter, outsider];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.prank(others[i]);
            _failsCaller(id, others[i]);
            rental.release(id, 400, ROOT, consent);
        }
        _redeem(id, 500);
        vm.startPrank(client);
        _failsCumulative(400, 500, AMOUNT);
        rental.release(id, 400, ROOT, consent);
        _failsCumulative(AMOUNT + 1, 500, AMOUNT);
        rental.release(id, AMOUNT + 1, ROOT, consent);
        rental.release(id, AMOUNT, ROOT, "");
        _failsState(id, ComputeRental.State.Closed);
        rental.release(id, AMOUNT, ROOT, "");
    }

    function test_one_person_in_every_part() public {
        address self = client;
        vm.startPrank(self);
        bytes32 id = rental.lock(SALT, self, self, 100, DEADLINE, SPEC);
        rental.settle(id, 34, ROOT, _voucher(id, 34));
        _isOwed(0, 1, 99, 0);
        bytes32 late = rental.lock("late", self, self, 100, DEADLINE, SPEC);
        vm.warp(REFUND - 1);
        rental.dispute(late); // as the provider, though as the client he is too late
        vm.warp(REFUND - 1 + WINDOW);
        rental.resolveByTimeout(late);
        rental.withdrawTo(self);
        _isOwed(0, 1, 0, 0);
    }

    function test_the_fee_wallet_may_be_the_payee() public {
        vm.prank(client);
        bytes32 id = rental.lock(SALT, provider, fees, 100, DEADLINE, SPEC);
        _redeem(id, 100);
        _same(rental.owed(fees), 100, "owed");
    }

    function test_the_smallest_and_the_largest_rental() public {
        bytes32 one = _lock("one", 1);
        _redeem(one, 1);
        _isOwed(1, 0, 0, 0);
        uint128 most = type(uint128).max - 1; // the client has one less by now
        bytes32 all = _lock("all", most);
        _redeem(all, 1);
        _redeem(all, most);
        _isOwed(1 + most - _feeOf(most), _feeOf(most), 0, 0);
    }

    function test_tolls_at_the_edges_of_rounding() public {
        uint128[7] memory amounts = [uint128(1), 33, 34, 66, 67, 99, 100];
        uint8[7] memory tolls = [0, 0, 1, 1, 2, 2, 3];
        uint256 all;
        uint256 kept;
        for (uint256 i = 0; i < amounts.length; ++i) {
            bytes32 id = _lock(bytes32(i), amounts[i]);
            _redeem(id, amounts[i]);
            all += amounts[i];
            kept += tolls[i];
            _isOwed(all - kept, kept, 0, 0);
        }
    }

    function test_the_toll_goes_to_the_wallet_of_the_day() public {
        bytes32 id = _lock();
        _redeem(id, 100);
        rental.proposeFeeWallet(outsider);
        vm.warp(START + 2 days);
        rental.acceptFeeWallet();
        _redeem(id, 200);
        _same(rental.owed(fees), 3, "the old wallet keeps what it was owed");
        _same(rental.owed(outsider), 3, "the new wallet");
    }

    function test_a_contract_wallet_signs_vouchers() public {
        Wallet wallet = new Wallet(client);
        bytes32 id = _lockBy(wallet);
        _redeem(id, 100);
        bytes memory forged = _voucher(PROVIDER_KEY, address(rental), block.chainid, id, 200, ROOT);
        vm.expectRevert(); // the wallet's own check reverts or says no
        rental.redeem(id, 200, ROOT, forged);
        wallet.unsay(); // what was not brought is unsaid: docs/contracts/rental.md says so
        bytes memory late = _voucher(id, 200);
        _failsSignature(address(wallet));
        rental.redeem(id, 200, ROOT, late);
        _isOwed(97, 3, 0, 900);
    }

    function _lockBy(Wallet wallet) private returns (bytes32 id) {
        token.mint(address(wallet), AMOUNT);
        wallet.run(address(token), abi.encodeCall(token.approve, (address(rental), AMOUNT)));
        wallet.run(
            address(rental),
            abi.encodeCall(rental.lock, (SALT, provider, payee, AMOUNT, DEADLINE, SPEC))
        );
        return rental.rentalId(address(wallet), SALT);
    }

    function test_a_contract_wallet_gives_its_word_as_a_provider() public {
        Wallet wallet = new Wallet(provider);
        vm.prank(client);
        bytes32 id = rental.lock(SALT, address(wallet), payee, AMOUNT, DEADLINE, SPEC);
        bytes memory consent = _consent(PROVIDER_KEY, id, 0);
        vm.prank(client);
        rental.release(id, 0, ROOT, consent);
        _isOwed(0, 0, AMOUNT, 0);
    }

    function test_code_that_an_account_takes_on_later_unsays_nothing() public {
        bytes32 id = _lock();
        bytes memory voucher = _voucher(id, 100);
        vm.etch(client, hex"00"); // as EIP-7702 does; this code answers nothing to whatever is asked
        rental.redeem(id, 100, ROOT, voucher);
        _isOwed(97, 3, 0, 900);
    }

    function test_malleable_signatures_are_refused() public {
        bytes32 id = _lock();
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(CLIENT_KEY, rental.voucherDigest(id, 100, ROOT));
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        bytes memory twin = abi.encodePacked(r, bytes32(order - uint256(s)), v == 27 ? 28 : 27);
        _failsSignature(client);
        rental.redeem(id, 100, ROOT, twin);
    }
}
