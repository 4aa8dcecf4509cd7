// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {FeeWallet} from "./FeeWallet.sol";

/// @title Escrow for rented computation
/// @notice A client locks money for a provider and signs, off chain, vouchers over a cumulative
/// figure while the work is done. A voucher is brought here by anybody and pays the difference to
/// the last one: 97 % to the payee, 3 % to the fee wallet. What is not paid goes back to him.
///
/// Who can end a rental, and when (every time is the first second of what comes after it):
///
///     lock ............. deadline ............. refundTime = deadline + grace .............
///     | client disputes | provider still disputes |
///     | client tops up                            | anybody refunds
///     | anybody redeems, provider settles, client releases, until the rental is closed
///
/// A dispute freezes all that. The arbiter ends it before disputedAt + disputeWindow; from then on
/// anybody does, and what the client has signed is paid. Nobody's absence holds money for ever:
/// from each state an outsider alone brings it to its owners (refund or resolveByTimeout, then
/// withdrawTo).
///
/// Rounding: the toll is floor(3 %) of the cumulative figure, so many vouchers cost what one does.
/// The token is a plain one with 6 decimals: what keeps a part of a transfer is refused when money
/// comes in; one whose balances change by themselves must not be used at all.
contract ComputeRental is ReentrancyGuardTransient, FeeWallet, EIP712 {
    using SafeERC20 for IERC20;

    /// @notice None → Locked → Closed, or None → Locked → Disputed → Closed; never back.
    enum State {
        None,
        Locked,
        Disputed,
        Closed
    }

    /// @notice One rental.
    /// @param client Who locked the money, signs the vouchers and is owed what is not paid.
    /// @param deadline When the work is to be done, seconds of Unix time.
    /// @param provider Who acts for the seller.
    /// @param disputedAt When the dispute was opened, seconds of Unix time; 0 for none.
    /// @param state Where the rental stands.
    /// @param payee Who is owed 97 % of what is paid: the provider, a WorkPool, anybody.
    /// @param locked All that was locked, what is paid included.
    /// @param paid What was paid, toll included; the largest cumulative figure so far.
    /// @param signed The largest voucher that was shown in a dispute; 0 for none.
    /// @param spec Digest of what was agreed.
    struct Rental {
        address client;
        uint64 deadline;
        address provider;
        uint64 disputedAt;
        State state;
        address payee;
        uint128 locked;
        uint128 paid;
        uint128 signed;
        bytes32 spec;
    }

    /// @notice What the client signs: so much of the rental is owed in all.
    bytes32 public constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 rentalId,uint128 cumulative,bytes32 receiptsRoot)");
    /// @notice What the provider signs: the rental may end at this figure.
    bytes32 public constant RELEASE_TYPEHASH =
        keccak256("Release(bytes32 rentalId,uint128 cumulative)");
    /// @notice The longest time from now to a deadline.
    uint256 public constant MAX_TERM = 366 days;
    /// @notice The shortest grace and dispute window.
    uint64 public constant MIN_PERIOD = 1 minutes;
    /// @notice The longest grace and dispute window.
    uint64 public constant MAX_PERIOD = 90 days;
    /// @dev Decimals of the token: one base unit is one micro-credit.
    uint8 private constant DECIMALS = 6;

    /// @notice The one token that is locked and paid.
    IERC20 public immutable token;
    /// @notice Who decides disputes.
    address public immutable arbiter;
    /// @notice Seconds after a deadline in which the provider may still bring what was signed.
    uint64 public immutable grace;
    /// @notice Seconds that the arbiter has for a dispute.
    uint64 public immutable disputeWindow;

    /// @notice What an account can withdraw.
    mapping(address account => uint256 amount) public owed;
    /// @notice What is owed plus what is locked and not paid; the contract has at least this much.
    uint256 public totalLiability;

    mapping(bytes32 id => Rental) private _rentals;

    /// @notice Money for a new rental came in.
    event Locked(
        bytes32 indexed id,
        address indexed client,
        address indexed provider,
        address payee,
        uint128 amount,
        uint64 deadline,
        bytes32 spec
    );
    /// @notice `amount` came in; `locked` and `deadline` are what holds now.
    event ToppedUp(bytes32 indexed id, uint128 amount, uint128 locked, uint64 deadline);
    /// @notice `payee` is owed `net` more, the fee wallet `fee`; `cumulative` is paid in all.
    event Paid(
        bytes32 indexed id,
        address indexed payee,
        uint256 net,
        uint256 fee,
        uint128 cumulative,
        bytes32 receiptsRoot
    );
    /// @notice A voucher was brought in a dispute: no less will be paid in all.
    event Shown(bytes32 indexed id, uint128 cumulative, bytes32 receiptsRoot);
    /// @notice `client` is owed `amount` that was not paid.
    event Returned(bytes32 indexed id, address indexed client, uint128 amount);
    /// @notice `by` froze the rental; from `until` on anybody may end the dispute.
    event Disputed(bytes32 indexed id, address indexed by, uint256 until);
    /// @notice A dispute ended with `cumulative` paid in all: by the arbiter, or by time.
    event Resolved(bytes32 indexed id, uint128 cumulative, bool byArbiter);
    /// @notice Nothing will happen to this rental any more.
    event Closed(bytes32 indexed id);
    /// @notice `account` was sent `amount`.
    event Withdrawn(address indexed account, uint256 amount);

    /// @notice The rental is in `state`, in which this cannot be done.
    error WrongState(bytes32 id, State state);
    /// @notice `caller` has no such right over this rental.
    error NotAllowed(bytes32 id, address caller);
    /// @notice It could be done before `until` only, in seconds of Unix time.
    error TooLate(uint256 until);
    /// @notice A cumulative figure must be from `least` to `most`.
    error BadCumulative(uint256 cumulative, uint256 least, uint256 most);
    /// @notice A deadline must be from `least` to `most`, in seconds of Unix time.
    error BadDeadline(uint256 deadline, uint256 least, uint256 most);
    /// @notice A grace or dispute window must be from `least` to `most` seconds.
    error BadPeriod(uint256 period, uint256 least, uint256 most);
    /// @notice `signer` did not sign this for this rental, contract and chain.
    error BadSignature(address signer);
    /// @notice There is no rental over nothing.
    error ZeroAmount();
    /// @notice Neither money nor time was added.
    error NothingAdded(bytes32 id);
    /// @notice The rental would hold more than `most`.
    error TooMuch(uint256 locked, uint256 most);
    /// @notice The token moved another sum than was asked for: it keeps or adds some.
    error NotReceived(uint256 asked, uint256 received);
    /// @notice The account has nothing to withdraw.
    error NothingOwed(address account);
    /// @notice The token has other decimals than `wanted`.
    error WrongDecimals(uint8 decimals, uint8 wanted);

    /// @param token_ The plain ERC-20 with 6 decimals that is paid in.
    /// @param feeWallet_ Who is owed the toll.
    /// @param arbiter_ Who decides disputes.
    /// @param grace_ Seconds from a deadline to the refund, 1 minute to 90 days.
    /// @param disputeWindow_ Seconds that the arbiter has, 1 minute to 90 days.
    constructor(
        IERC20 token_,
        address feeWallet_,
        address arbiter_,
        uint64 grace_,
        uint64 disputeWindow_
    ) Ownable(msg.sender) FeeWallet(feeWallet_) EIP712("ComputeRental", "1") {
        if (arbiter_ == address(0)) revert ZeroAddress();
        uint8 decimals = IERC20Metadata(address(token_)).decimals();
        if (decimals != DECIMALS) revert WrongDecimals(decimals, DECIMALS);
        _checkPeriod(grace_);
        _checkPeriod(disputeWindow_);
        token = token_;
        arbiter = arbiter_;
        grace = grace_;
        disputeWindow = disputeWindow_;
    }

    // Money in.

    /// @notice Lock money for a provider. The id is of the caller and his salt, so that nobody else
    /// can take it; a salt serves once, also after its rental is closed.
    /// @param salt Any number that the caller did not use before.
    /// @param provider Who acts for the seller.
    /// @param payee Who is paid.
    /// @param amount How much to take from the caller, who approved it to this contract.
    /// @param deadline When the work is to be done: later than now, at most MAX_TERM from now.
    /// @param spec Digest of what was agreed; not looked into.
    /// @return id The rental.
    function lock(
        bytes32 salt,
        address provider,
        address payee,
        uint128 amount,
        uint64 deadline,
        bytes32 spec
    ) external nonReentrant returns (bytes32 id) {
        return _lock(salt, provider, payee, amount, deadline, spec);
    }

    /// @notice `lock` with the caller's ERC-2612 permit instead of an approval before. Somebody may
    /// have used the permit already: then its allowance is there, and it is no error.
    /// @param salt Any number that the caller did not use before.
    /// @param provider Who acts for the seller.
    /// @param payee Who is paid.
    /// @param amount How much to take from the caller; what the permit is over.
    /// @param deadline When the work is to be done: later than now, at most MAX_TERM from now.
    /// @param spec Digest of what was agreed; not looked into.
    /// @param permitDeadline Until when the permit holds.
    /// @param v With `r` and `s` the permit's signature.
    /// @param r See `v`.
    /// @param s See `v`.
    /// @return id The rental.
    function lockWithPermit(
        bytes32 salt,
        address provider,
        address payee,
        uint128 amount,
        uint64 deadline,
        bytes32 spec,
        uint256 permitDeadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external nonReentrant returns (bytes32 id) {
        try IERC20Permit(address(token))
            .permit(msg.sender, address(this), amount, permitDeadline, v, r, s) {} catch {}
        return _lock(salt, provider, payee, amount, deadline, spec);
    }

    /// @notice The client adds money, time or both, before refundTime. The deadline never moves to
    /// an earlier second.
    /// @param id The rental.
    /// @param amount How much to add; 0 for no money.
    /// @param deadline What the deadline is to be, at most MAX_TERM from now; as it is for no time.
    function topUp(bytes32 id, uint128 amount, uint64 deadline) external nonReentrant {
        Rental storage rental = _inState(id, State.Locked);
        if (msg.sender != rental.client) revert NotAllowed(id, msg.sender);
        uint256 until = _refundTime(rental);
        if (block.timestamp >= until) revert TooLate(until);
        uint64 before = rental.deadline;
        if (amount == 0 && deadline == before) revert NothingAdded(id);
        if (deadline != before) {
            _checkDeadline(deadline, before);
            rental.deadline = deadline;
        }
        uint256 locked = uint256(rental.locked) + amount;
        if (locked > type(uint128).max) revert TooMuch(locked, type(uint128).max);
        rental.locked = uint128(locked);
        emit ToppedUp(id, amount, uint128(locked), deadline);
        if (amount != 0) _take(amount);
    }

    // Payment, and the end in agreement.

    /// @notice Bring the client's voucher; anybody may. It pays what is new in it. In a dispute
    /// nothing is paid yet, but the figure is kept: neither the arbiter nor time goes below it.
    /// A voucher counts until the rental is closed; from refundTime on anybody may close it.
    /// @param id The rental.
    /// @param cumulative What is owed in all, toll included: more than so far, at most all locked.
    /// @param receiptsRoot Root of the receipts that the figure is for; not looked into.
    /// @param signature Of the client over `voucherDigest`.
    function redeem(
        bytes32 id,
        uint128 cumulative,
        bytes32 receiptsRoot,
        bytes calldata signature
    ) external nonReentrant {
        Rental storage rental = _rentals[id];
        State state = rental.state;
        if (state != State.Locked && state != State.Disputed) revert WrongState(id, state);
        _checkVoucher(id, rental, cumulative, receiptsRoot, signature);
        if (state == State.Locked) {
            _pay(id, rental, cumulative, receiptsRoot);
        } else {
            rental.signed = cumulative;
            emit Shown(id, cumulative, receiptsRoot);
        }
    }

    /// @notice The provider takes what was signed and gives the rest back, in one transaction. With
    /// `cumulative` as it is already paid there is nothing new to take, and no signature is needed.
    /// @param id The rental.
    /// @param cumulative What is owed in all, toll included.
    /// @param receiptsRoot Root of the receipts that the figure is for; not looked into.
    /// @param signature Of the client over `voucherDigest`; ignored if nothing new is taken.
    function settle(
        bytes32 id,
        uint128 cumulative,
        bytes32 receiptsRoot,
        bytes calldata signature
    ) external nonReentrant {
        Rental storage rental = _inState(id, State.Locked);
        if (msg.sender != rental.provider) revert NotAllowed(id, msg.sender);
        if (cumulative != rental.paid) {
            _checkVoucher(id, rental, cumulative, receiptsRoot, signature);
            _pay(id, rental, cumulative, receiptsRoot);
        }
        _close(id, rental);
    }

    /// @notice The client pays and takes the rest back. He pays all of it as he likes; to take
    /// something back before refundTime he needs the provider's word, or vouchers that he signed
    /// and that were not brought yet would be worth nothing.
    /// @param id The rental.
    /// @param cumulative What is to be paid in all, toll included: no less than so far.
    /// @param receiptsRoot Root of the receipts that the figure is for; not looked into.
    /// @param signature Of the provider over `releaseDigest`; ignored if all locked is paid.
    function release(
        bytes32 id,
        uint128 cumulative,
        bytes32 receiptsRoot,
        bytes calldata signature
    ) external nonReentrant {
        Rental storage rental = _inState(id, State.Locked);
        if (msg.sender != rental.client) revert NotAllowed(id, msg.sender);
        _checkCumulative(cumulative, rental.paid, rental.locked);
        if (cumulative != rental.locked) {
            _checkSignature(rental.provider, releaseDigest(id, cumulative), signature);
        }
        _pay(id, rental, cumulative, receiptsRoot);
        _close(id, rental);
    }

    // The end without agreement.

    /// @notice From refundTime on anybody gives the client back what was not paid.
    /// @param id The rental.
    function refund(bytes32 id) external nonReentrant {
        Rental storage rental = _inState(id, State.Locked);
        uint256 from = _refundTime(rental);
        if (block.timestamp < from) revert TooEarly(from);
        _close(id, rental);
    }

    /// @notice Freeze the rental until the arbiter decides or was silent for disputeWindow. The
    /// client may before the deadline, the provider before refundTime. Nobody can take it back.
    /// @param id The rental.
    function dispute(bytes32 id) external nonReentrant {
        Rental storage rental = _inState(id, State.Locked);
        uint256 until;
        if (msg.sender == rental.provider) until = _refundTime(rental);
        else if (msg.sender == rental.client) until = rental.deadline;
        else revert NotAllowed(id, msg.sender);
        if (block.timestamp >= until) revert TooLate(until);
        rental.state = State.Disputed;
        rental.disputedAt = uint64(block.timestamp);
        emit Disputed(id, msg.sender, _disputeEnd(rental));
    }

    /// @notice The arbiter decides, within disputeWindow. What the client signed is owed: the
    /// decision is over what is more than that.
    /// @param id The rental.
    /// @param cumulative What is to be paid in all, toll included: no less than what was paid or
    /// shown, at most what is locked.
    function resolve(bytes32 id, uint128 cumulative) external nonReentrant {
        Rental storage rental = _inState(id, State.Disputed);
        if (msg.sender != arbiter) revert NotAllowed(id, msg.sender);
        uint256 until = _disputeEnd(rental);
        if (block.timestamp >= until) revert TooLate(until);
        _checkCumulative(cumulative, _agreed(rental), rental.locked);
        _pay(id, rental, cumulative, bytes32(0));
        emit Resolved(id, cumulative, true);
        _close(id, rental);
    }

    /// @notice When the arbiter was silent anybody ends the dispute. Silence favours neither side:
    /// what both agreed to, the largest voucher that was brought, is paid, and the rest goes back.
    /// @param id The rental.
    function resolveByTimeout(bytes32 id) external nonReentrant {
        Rental storage rental = _inState(id, State.Disputed);
        uint256 from = _disputeEnd(rental);
        if (block.timestamp < from) revert TooEarly(from);
        uint128 cumulative = _agreed(rental);
        _pay(id, rental, cumulative, bytes32(0));
        emit Resolved(id, cumulative, false);
        _close(id, rental);
    }

    // Money out.

    /// @notice Send an account what it is owed; anybody may.
    /// @param account Whose money, and where it goes.
    function withdrawTo(address account) external nonReentrant {
        if (owed[account] == 0) revert NothingOwed(account);
        _send(account);
    }

    /// @notice `withdrawTo` for many; who is owed nothing is left out. If the token refuses one of
    /// them it refuses all: leave that one out.
    /// @param accounts Whose money, and where it goes.
    function withdrawMany(address[] calldata accounts) external nonReentrant {
        for (uint256 i = 0; i < accounts.length; ++i) {
            if (owed[accounts[i]] != 0) _send(accounts[i]);
        }
    }

    // To look at.

    /// @notice One rental, all fields; of an id that was never locked they are zero.
    /// @param id The rental.
    /// @return Its fields.
    function rentals(bytes32 id) external view returns (Rental memory) {
        return _rentals[id];
    }

    /// @notice One figure for all that is known of a rental: who compares it sees the same state.
    /// @param id The rental.
    /// @return keccak256 of the ABI encoding of the id and the fields, in the order of the struct.
    function stateId(bytes32 id) external view returns (bytes32) {
        return keccak256(abi.encode(id, _rentals[id]));
    }

    /// @notice From when on anybody may refund.
    /// @param id The rental.
    /// @return Seconds of Unix time; 0 for an id that was never locked.
    function refundTime(bytes32 id) external view returns (uint256) {
        Rental storage rental = _rentals[id];
        return rental.state == State.None ? 0 : _refundTime(rental);
    }

    /// @notice From when on anybody may end the dispute.
    /// @param id The rental.
    /// @return Seconds of Unix time; 0 for a rental that was never disputed.
    function disputeEnd(bytes32 id) external view returns (uint256) {
        Rental storage rental = _rentals[id];
        return rental.disputedAt == 0 ? 0 : _disputeEnd(rental);
    }

    /// @notice What a client's voucher signs (EIP-712, bound to this chain and contract).
    /// @param id The rental.
    /// @param cumulative What is owed in all, toll included.
    /// @param receiptsRoot Root of the receipts that the figure is for.
    /// @return The digest.
    function voucherDigest(bytes32 id, uint128 cumulative, bytes32 receiptsRoot)
        public
        view
        returns (bytes32)
    {
        bytes memory voucher = abi.encode(VOUCHER_TYPEHASH, id, cumulative, receiptsRoot);
        return _hashTypedDataV4(keccak256(voucher));
    }

    /// @notice What a provider signs who lets the client take the rest back (EIP-712). It is his
    /// last word: he signs it when he has no larger voucher.
    /// @param id The rental.
    /// @param cumulative What is to be paid in all, toll included.
    /// @return The digest.
    function releaseDigest(bytes32 id, uint128 cumulative) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(RELEASE_TYPEHASH, id, cumulative)));
    }

    /// @notice The id that a client's salt gives.
    /// @param client Who locks.
    /// @param salt His number.
    /// @return The id.
    function rentalId(address client, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(client, salt));
    }

    // What changes money.

    function _lock(
        bytes32 salt,
        address provider,
        address payee,
        uint128 amount,
        uint64 deadline,
        bytes32 spec
    ) private returns (bytes32 id) {
        id = rentalId(msg.sender, salt);
        Rental storage rental = _inState(id, State.None);
        if (provider == address(0)) revert ZeroAddress();
        _checkPayee(payee);
        if (amount == 0) revert ZeroAmount();
        _checkDeadline(deadline, block.timestamp + 1);
        rental.client = msg.sender;
        rental.deadline = deadline;
        rental.provider = provider;
        rental.state = State.Locked;
        rental.payee = payee;
        rental.locked = amount;
        rental.spec = spec;
        emit Locked(id, msg.sender, provider, payee, amount, deadline, spec);
        _take(amount);
    }

    /// @dev Last, for it calls the token.
    function _take(uint128 amount) private {
        totalLiability += amount;
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert NotReceived(amount, received);
    }

    /// @dev `cumulative` is no less than what was paid and at most what is locked.
    function _pay(bytes32 id, Rental storage rental, uint128 cumulative, bytes32 receiptsRoot)
        private
    {
        uint128 paid = rental.paid;
        if (cumulative == paid) return;
        rental.paid = cumulative;
        uint256 fee = _feeOf(cumulative) - _feeOf(paid);
        uint256 net = cumulative - paid - fee;
        address payee = rental.payee;
        owed[feeWallet] += fee;
        owed[payee] += net;
        emit Paid(id, payee, net, fee, cumulative, receiptsRoot);
    }

    function _close(bytes32 id, Rental storage rental) private {
        uint128 rest = rental.locked - rental.paid;
        address client = rental.client;
        rental.state = State.Closed;
        if (rest != 0) {
            owed[client] += rest;
            emit Returned(id, client, rest);
        }
        emit Closed(id);
    }

    /// @dev The account is owed nothing any more when the token is called.
    function _send(address account) private {
        uint256 amount = owed[account];
        owed[account] = 0;
        totalLiability -= amount;
        emit Withdrawn(account, amount);
        token.safeTransfer(account, amount);
    }

    // Checks.

    function _inState(bytes32 id, State state) private view returns (Rental storage rental) {
        rental = _rentals[id];
        if (rental.state != state) revert WrongState(id, rental.state);
    }

    function _checkVoucher(
        bytes32 id,
        Rental storage rental,
        uint128 cumulative,
        bytes32 receiptsRoot,
        bytes calldata signature
    ) private view {
        _checkCumulative(cumulative, uint256(_agreed(rental)) + 1, rental.locked);
        _checkSignature(rental.client, voucherDigest(id, cumulative, receiptsRoot), signature);
    }

    /// @dev A key's own signature is looked at first, whatever code its account has: with EIP-7702
    /// an account could take on code after it signed, and unsay its vouchers by it.
    function _checkSignature(address signer, bytes32 digest, bytes calldata signature)
        private
        view
    {
        (address found, ECDSA.RecoverError fault,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (fault == ECDSA.RecoverError.NoError && found == signer) return;
        if (!SignatureChecker.isValidERC1271SignatureNowCalldata(signer, digest, signature)) {
            revert BadSignature(signer);
        }
    }

    function _checkCumulative(uint128 cumulative, uint256 least, uint128 most) private pure {
        if (cumulative < least || cumulative > most) revert BadCumulative(cumulative, least, most);
    }

    function _checkDeadline(uint64 deadline, uint256 least) private view {
        uint256 most = block.timestamp + MAX_TERM;
        if (deadline < least || deadline > most) revert BadDeadline(deadline, least, most);
    }

    function _checkPeriod(uint64 period) private pure {
        if (period < MIN_PERIOD || period > MAX_PERIOD) {
            revert BadPeriod(period, MIN_PERIOD, MAX_PERIOD);
        }
    }

    function _refundTime(Rental storage rental) private view returns (uint256) {
        return uint256(rental.deadline) + grace;
    }

    function _disputeEnd(Rental storage rental) private view returns (uint256) {
        return uint256(rental.disputedAt) + disputeWindow;
    }

    /// @dev What client and provider have agreed to: paid, or signed and shown.
    function _agreed(Rental storage rental) private view returns (uint128) {
        return rental.signed > rental.paid ? rental.signed : rental.paid;
    }
}
