// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {ComputeRental} from "../src/ComputeRental.sol";
import {DevToken} from "../src/DevToken.sol";
import {Base} from "./Vm.sol";

/// @dev A rental's people, one contract, and what they sign. The digests are built here from the
/// EIPs and not asked of the contract.
abstract contract RentalBase is Base {
    uint256 internal constant CLIENT_KEY = 0xC11E27;
    uint256 internal constant PROVIDER_KEY = 0x5E11E5;
    uint64 internal constant GRACE = 1 days;
    uint64 internal constant WINDOW = 3 days;
    uint64 internal constant START = 1_800_000_000;
    uint64 internal constant DEADLINE = START + 10 days;
    uint64 internal constant REFUND = DEADLINE + GRACE;
    uint128 internal constant AMOUNT = 1000;
    bytes32 internal constant SALT = "salt";
    bytes32 internal constant SPEC = "spec";
    bytes32 internal constant ROOT = "root";

    address internal client = vm.addr(CLIENT_KEY);
    address internal provider = vm.addr(PROVIDER_KEY);
    address internal payee = address(0xBEEF);
    address internal arbiter = address(0xA4B1);
    address internal fees = address(0xFEE5);
    address internal outsider = address(0x0D1);

    DevToken internal token;
    ComputeRental internal rental;

    error Differs(string what, uint256 left, uint256 right);

    function setUp() public virtual {
        vm.warp(START);
        _use(new DevToken());
    }

    function _use(DevToken token_) internal {
        token = token_;
        rental = new ComputeRental(token, fees, arbiter, GRACE, WINDOW);
        _fund(client, type(uint128).max);
    }

    function _fund(address account, uint256 amount) internal {
        token.mint(account, amount);
        vm.prank(account);
        token.approve(address(rental), type(uint256).max);
    }

    function _lock() internal returns (bytes32) {
        return _lock(SALT, AMOUNT);
    }

    function _lock(bytes32 salt, uint128 amount) internal returns (bytes32) {
        vm.prank(client);
        return rental.lock(salt, provider, payee, amount, DEADLINE, SPEC);
    }

    function _redeem(bytes32 id, uint128 cumulative) internal {
        rental.redeem(id, cumulative, ROOT, _voucher(id, cumulative));
    }

    function _dispute(bytes32 id, address by) internal {
        vm.prank(by);
        rental.dispute(id);
    }

    function _voucher(bytes32 id, uint128 cumulative) internal view returns (bytes memory) {
        return _voucher(CLIENT_KEY, address(rental), block.chainid, id, cumulative, ROOT);
    }

    function _voucher(
        uint256 key,
        address verifier,
        uint256 chain,
        bytes32 id,
        uint128 cumulative,
        bytes32 root
    ) internal pure returns (bytes memory) {
        bytes32 kind = keccak256("Voucher(bytes32 rentalId,uint128 cumulative,bytes32 receiptsRoot)");
        bytes32 what = keccak256(abi.encode(kind, id, cumulative, root));
        return _sign(key, _typed(verifier, chain, what));
    }

    /// @dev The provider's word that the rental may end at this figure.
    function _consent(uint256 key, bytes32 id, uint128 cumulative)
        internal
        view
        returns (bytes memory)
    {
        bytes32 kind = keccak256("Release(bytes32 rentalId,uint128 cumulative)");
        bytes32 what = keccak256(abi.encode(kind, id, cumulative));
        return _sign(key, _typed(address(rental), block.chainid, what));
    }

    function _typed(address verifier, uint256 chain, bytes32 what) internal pure returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("ComputeRental"),
                keccak256("1"),
                chain,
                verifier
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, what));
    }

    function _sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function _feeOf(uint256 cumulative) internal pure returns (uint256) {
        return (cumulative * 3) / 100;
    }

    function _isState(bytes32 id, ComputeRental.State state) internal view {
        _same(uint8(rental.rentals(id).state), uint8(state), "state");
    }

    /// @dev What each is owed, and that the contract has it, with what is open, to the unit.
    function _isOwed(uint256 toPayee, uint256 toFees, uint256 toClient, uint256 open) internal view {
        _same(rental.owed(payee), toPayee, "owed to the payee");
        _same(rental.owed(fees), toFees, "owed to the fee wallet");
        _same(rental.owed(client), toClient, "owed to the client");
        _same(rental.totalLiability(), toPayee + toFees + toClient + open, "liability");
        _same(token.balanceOf(address(rental)), rental.totalLiability(), "balance");
    }

    function _same(uint256 left, uint256 right, string memory what) internal pure {
        if (left != right) revert Differs(what, left, right);
    }

    function _same(address left, address right, string memory what) internal pure {
        _same(uint160(left), uint160(right), what);
    }

    function _fails(bytes memory fault) internal {
        vm.expectRevert(fault);
    }

    function _failsState(bytes32 id, ComputeRental.State state) internal {
        vm.expectRevert(abi.encodeWithSelector(ComputeRental.WrongState.selector, id, state));
    }

    function _failsCaller(bytes32 id, address caller) internal {
        vm.expectRevert(abi.encodeWithSelector(ComputeRental.NotAllowed.selector, id, caller));
    }

    function _failsCumulative(uint256 given, uint256 least, uint256 most) internal {
        vm.expectRevert(
            abi.encodeWithSelector(ComputeRental.BadCumulative.selector, given, least, most)
        );
    }

    function _failsSignature(address signer) internal {
        vm.expectRevert(abi.encodeWithSelector(ComputeRental.BadSignature.selector, signer));
    }

    function _failsLate(uint256 until) internal {
        vm.expectRevert(abi.encodeWithSelector(ComputeRental.TooLate.selector, until));
    }
}

/// @dev A contract wallet (ERC-1271): what its owner signed, unless it unsays all.
contract Wallet {
    address private immutable owner;
    bool private unsaid;

    constructor(address owner_) {
        owner = owner_;
    }

    function unsay() external {
        unsaid = true;
    }

    function run(address target, bytes calldata call_) external returns (bytes memory) {
        (bool isDone, bytes memory answer) = target.call(call_);
        require(isDone, "the wallet's call failed");
        return answer;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature)
        external
        view
        returns (bytes4)
    {
        if (unsaid || ECDSA.recoverCalldata(digest, signature) != owner) return 0;
        return this.isValidSignature.selector;
    }
}
