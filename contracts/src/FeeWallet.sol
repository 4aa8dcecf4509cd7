// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";

/// @title Where the toll goes, and how slowly that changes
/// @notice 3 % of what is paid is kept for one wallet. Another wallet is proposed by the owner, in
/// the open, and takes its place `FEE_WALLET_DELAY` later: whoever does not like it has time to go.
abstract contract FeeWallet is Ownable2Step {
    /// @notice Hundredths of a percent of a payment that are kept.
    uint256 public constant FEE_BPS = 300;
    /// @dev The whole, in hundredths of a percent.
    uint256 internal constant BPS = 10_000;
    /// @notice Seconds between a proposal and its effect.
    uint256 public constant FEE_WALLET_DELAY = 2 days;

    /// @notice Who is owed the toll of payments made now.
    address public feeWallet;
    /// @notice Who is to be; zero for no proposal.
    address public proposedFeeWallet;
    /// @notice From when on the proposal can be accepted, seconds of Unix time.
    uint256 public feeWalletFrom;

    /// @notice `wallet` can be accepted from `from` on; zero: the proposal was taken back.
    event FeeWalletProposed(address indexed wallet, uint256 from);
    /// @notice The toll goes to `wallet` from now on.
    event FeeWalletChanged(address indexed wallet);

    /// @notice An address that must not be zero is.
    error ZeroAddress();
    /// @notice This contract cannot be owed anything by itself: nobody could get it out.
    error OwnAddress();
    /// @notice There is no proposal.
    error NoProposal();
    /// @notice It is not time yet: `from` is when, in seconds of Unix time.
    error TooEarly(uint256 from);

    /// @param wallet Who is owed the toll at first.
    constructor(address wallet) {
        _checkPayee(wallet);
        feeWallet = wallet;
        emit FeeWalletChanged(wallet);
    }

    /// @notice Begin to change the fee wallet, or (zero) take the proposal back.
    /// @param wallet Who is to be owed the toll.
    function proposeFeeWallet(address wallet) external onlyOwner {
        if (wallet != address(0)) _checkPayee(wallet);
        proposedFeeWallet = wallet;
        feeWalletFrom = wallet == address(0) ? 0 : block.timestamp + FEE_WALLET_DELAY;
        emit FeeWalletProposed(wallet, feeWalletFrom);
    }

    /// @notice Give the proposal its effect, when its time has come. Anybody may.
    function acceptFeeWallet() external {
        address wallet = proposedFeeWallet;
        if (wallet == address(0)) revert NoProposal();
        if (block.timestamp < feeWalletFrom) revert TooEarly(feeWalletFrom);
        feeWallet = wallet;
        proposedFeeWallet = address(0);
        feeWalletFrom = 0;
        emit FeeWalletChanged(wallet);
    }

    /// @dev Who is to be owed money must be able to get it.
    function _checkPayee(address account) internal view {
        if (account == address(0)) revert ZeroAddress();
        if (account == address(this)) revert OwnAddress();
    }

    /// @dev The toll of an amount, rounded down: the rest is the seller's.
    function _feeOf(uint256 amount) internal pure returns (uint256) {
        return (amount * FEE_BPS) / BPS;
    }
}
