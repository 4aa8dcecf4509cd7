// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {ERC2981} from "@openzeppelin/contracts/token/common/ERC2981.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {FeeWallet} from "./FeeWallet.sol";

/// @title Prompts as tokens, and a market for them at fixed prices
/// @notice A token stands for a prompt by the hash of its content, never by its text: the hash is
/// the token's id, so a content is registered once. The first owner is its creator, and has a
/// royalty of later sales. Nothing burns a token.
///
/// A buyer pays exactly the price, in one transaction with getting the token. Of it floor(3 %) is
/// the fee wallet's, floor(royalty) the creator's unless it sells itself, and the rest, with what
/// rounding left, the seller's. All three are owed it and withdraw it: nobody's account can hold up
/// a sale.
///
/// Who knows a hash can register it: hash a manifest that names its creator, not the bare text.
contract PromptMarketplace is ERC721, ERC2981, FeeWallet, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice What a creator signs to sell a prompt that is not registered yet, to whoever pays.
    /// It is good for one sale, as there is one token of a content.
    /// @param creator Who made it, signs this and is paid.
    /// @param contentHash Of the prompt.
    /// @param price Base units; not zero.
    /// @param royaltyBps Of later sales, hundredths of a percent.
    /// @param expiry Last second of Unix time at which it is good.
    struct Offer {
        address creator;
        bytes32 contentHash;
        uint128 price;
        uint96 royaltyBps;
        uint64 expiry;
    }

    /// @notice The most that a creator can ask of later sales, hundredths of a percent.
    uint96 public constant MAX_ROYALTY_BPS = 1_000;
    /// @dev Decimals of the token: one base unit is one micro-credit.
    uint8 private constant DECIMALS = 6;
    /// @notice EIP-712 type of an offer.
    bytes32 public constant OFFER_TYPEHASH = keccak256(
        "Offer(address creator,bytes32 contentHash,uint128 price,uint96 royaltyBps,uint64 expiry)"
    );

    /// @notice What is paid with.
    IERC20 public immutable token;

    /// @notice What the owner asks for a token, base units; zero: it is not for sale.
    mapping(uint256 id => uint128 price) public priceOf;
    /// @notice What an account can withdraw, base units.
    mapping(address account => uint256 amount) public owed;
    /// @notice A creator's offers of a content are void.
    mapping(address creator => mapping(bytes32 contentHash => bool)) public isOfferCancelled;

    /// @notice `creator` has token `id`, which is the content's hash.
    event Registered(uint256 indexed id, address indexed creator, uint96 royaltyBps);
    /// @notice `seller` asks `price` for `id`.
    event Listed(uint256 indexed id, address indexed seller, uint128 price);
    /// @notice `id` is not for sale any more, and was not sold: taken back, or given away.
    event Unlisted(uint256 indexed id);
    /// @notice `id` was sold; `fee` and `royalty` are parts of `price`.
    event Sold(
        uint256 indexed id,
        address indexed seller,
        address indexed buyer,
        uint128 price,
        uint256 fee,
        uint256 royalty
    );
    /// @notice Offers of `contentHash` that `creator` signed are void, also those to come.
    event OfferCancelled(address indexed creator, bytes32 indexed contentHash);
    /// @notice `account` was sent what it was owed.
    event Withdrawn(address indexed account, uint256 amount);

    /// @notice A content hash of zero is a forgotten one.
    error ZeroContentHash();
    /// @notice The royalty may be `max` hundredths of a percent.
    error RoyaltyTooHigh(uint96 royaltyBps, uint96 max);
    /// @notice The content has a token already, which `owner` has.
    error AlreadyRegistered(uint256 id, address owner);
    /// @notice Only `owner` can do this.
    error NotTokenOwner(uint256 id, address owner);
    /// @notice A price of zero means not for sale.
    error ZeroPrice();
    /// @notice Nobody sells this token.
    error NotListed(uint256 id);
    /// @notice It costs more than the buyer agreed to.
    error PriceAbove(uint128 price, uint128 maxPrice);
    /// @notice The buyer is the seller.
    error OwnPurchase(uint256 id);
    /// @notice The offer was good until `expiry`, seconds of Unix time.
    error OfferExpired(uint64 expiry);
    /// @notice The creator has cancelled its offers of this content.
    error OfferVoid(address creator, bytes32 contentHash);
    /// @notice Not `creator`'s signature of this offer, for this contract on this chain.
    error BadSignature(address creator);
    /// @notice The token moved another sum than was asked for: it keeps or adds some.
    error NotReceived(uint256 asked, uint256 received);
    /// @notice The account has nothing to withdraw.
    error NothingOwed(address account);
    /// @notice The token has other decimals than `wanted`.
    error WrongDecimals(uint8 decimals, uint8 wanted);

    /// @param token_ What is paid with: a plain ERC-20 of 6 decimals.
    /// @param wallet Who is owed the toll at first.
    constructor(IERC20 token_, address wallet)
        ERC721("Gristmill Prompt", "PROMPT")
        EIP712("PromptMarketplace", "1")
        FeeWallet(wallet)
        Ownable(msg.sender)
    {
        if (address(token_) == address(0)) revert ZeroAddress();
        uint8 decimals = IERC20Metadata(address(token_)).decimals();
        if (decimals != DECIMALS) revert WrongDecimals(decimals, DECIMALS);
        token = token_;
    }

    // What a creator does.

    /// @notice Get the token of a content. Sending it again changes nothing: `AlreadyRegistered`.
    /// @param contentHash Of the prompt.
    /// @param royaltyBps Of later sales, hundredths of a percent; for ever.
    /// @return id Of the token: the hash.
    function register(bytes32 contentHash, uint96 royaltyBps) external returns (uint256 id) {
        return _register(msg.sender, contentHash, royaltyBps);
    }

    /// @notice Make one's offers of a content void, those to come as well. To sell it after that:
    /// `register` and `list`.
    /// @param contentHash Of the prompt.
    function cancelOffer(bytes32 contentHash) external {
        isOfferCancelled[msg.sender][contentHash] = true;
        emit OfferCancelled(msg.sender, contentHash);
    }

    /// @notice Who registered a token; zero when nobody did.
    /// @param id Of the token.
    /// @return creator Who gets its royalties.
    function creatorOf(uint256 id) public view returns (address creator) {
        (creator,) = royaltyInfo(id, 0);
    }

    // What a seller does.

    /// @notice Ask a price for a token, or another price. It stays its owner's until it is sold;
    /// when it is given to somebody else it is not for sale any more.
    /// @param id Of the token.
    /// @param price Base units; not zero.
    function list(uint256 id, uint128 price) external {
        _checkOwner(id);
        if (price == 0) revert ZeroPrice();
        priceOf[id] = price;
        emit Listed(id, msg.sender, price);
    }

    /// @notice Sell a token no more.
    /// @param id Of the token.
    function unlist(uint256 id) external {
        _checkOwner(id);
        if (priceOf[id] == 0) revert NotListed(id);
        _unlist(id);
    }

    // What a buyer does.

    /// @notice Buy a token that is for sale.
    /// @param id Of the token.
    /// @param maxPrice The most the caller pays, base units: a price that rises meanwhile is
    /// refused.
    function buy(uint256 id, uint128 maxPrice) external nonReentrant {
        address seller = ownerOf(id);
        uint128 price = priceOf[id];
        if (price == 0) revert NotListed(id);
        delete priceOf[id]; // before the token moves: it is sold, not `Unlisted`
        _sell(id, seller, price, maxPrice);
    }

    /// @notice Buy a prompt by its creator's offer: registered, paid and handed over at once.
    /// @param offer What the creator signed.
    /// @param signature Of it by EIP-712; of a contract by ERC-1271.
    /// @param maxPrice The most the caller pays, base units.
    /// @return id Of the token.
    function registerAndBuy(Offer calldata offer, bytes calldata signature, uint128 maxPrice)
        external
        nonReentrant
        returns (uint256 id)
    {
        if (block.timestamp > offer.expiry) revert OfferExpired(offer.expiry);
        if (offer.price == 0) revert ZeroPrice();
        if (isOfferCancelled[offer.creator][offer.contentHash]) {
            revert OfferVoid(offer.creator, offer.contentHash);
        }
        _checkSignature(offer.creator, digestOf(offer), signature);
        id = _register(offer.creator, offer.contentHash, offer.royaltyBps);
        _sell(id, offer.creator, offer.price, maxPrice);
    }

    /// @notice What the creator of an offer signs.
    /// @param offer The offer.
    /// @return The digest, by EIP-712 for this contract on this chain.
    function digestOf(Offer calldata offer) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(
                abi.encode(
                    OFFER_TYPEHASH,
                    offer.creator,
                    offer.contentHash,
                    offer.price,
                    offer.royaltyBps,
                    offer.expiry
                )
            )
        );
    }

    // Money out, and what it is to others.

    /// @notice Send an account all that it is owed. Anybody may.
    /// @param account Who is owed it, and gets it.
    function withdrawTo(address account) external nonReentrant {
        uint256 amount = owed[account];
        if (amount == 0) revert NothingOwed(account);
        owed[account] = 0;
        emit Withdrawn(account, amount);
        token.safeTransfer(account, amount);
    }

    /// @notice Whether this is what an interface says (ERC-165): ERC-721 and ERC-2981 it is.
    /// @param id Of the interface.
    /// @return True if it is.
    function supportsInterface(bytes4 id) public view override(ERC721, ERC2981) returns (bool) {
        return super.supportsInterface(id);
    }

    // Within.

    /// @dev A new token to `creator`, whose account is not called: a contract may be one.
    function _register(address creator, bytes32 contentHash, uint96 royaltyBps)
        private
        returns (uint256 id)
    {
        if (contentHash == 0) revert ZeroContentHash();
        if (royaltyBps > MAX_ROYALTY_BPS) revert RoyaltyTooHigh(royaltyBps, MAX_ROYALTY_BPS);
        id = uint256(contentHash);
        address owner = _ownerOf(id);
        if (owner != address(0)) revert AlreadyRegistered(id, owner);
        _mint(creator, id);
        _setTokenRoyalty(id, creator, royaltyBps); // of 0 too: it remembers the creator
        emit Registered(id, creator, royaltyBps);
    }

    /// @dev Hand a token to the caller, who pays for it; who gets how much is written down.
    function _sell(uint256 id, address seller, uint128 price, uint128 maxPrice) private {
        if (price > maxPrice) revert PriceAbove(price, maxPrice);
        if (msg.sender == seller) revert OwnPurchase(id);
        (address creator, uint256 royalty) = royaltyInfo(id, price);
        if (creator == seller) royalty = 0;
        if (royalty != 0) owed[creator] += royalty;
        uint256 fee = _feeOf(price);
        owed[feeWallet] += fee;
        owed[seller] += price - fee - royalty;
        emit Sold(id, seller, msg.sender, price, fee, royalty);
        _transfer(seller, msg.sender, id);

        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), price);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != price) revert NotReceived(price, received);
    }

    /// @dev A token that changes hands is not for sale: its new owner has asked no price.
    function _update(address to, uint256 id, address auth)
        internal
        override
        returns (address from)
    {
        from = super._update(to, id, auth);
        if (priceOf[id] != 0) _unlist(id);
    }

    function _unlist(uint256 id) private {
        delete priceOf[id];
        emit Unlisted(id);
    }

    /// @dev A key's own signature is good whatever code its account has (EIP-7702); else a
    /// contract's by ERC-1271.
    function _checkSignature(address creator, bytes32 digest, bytes calldata signature)
        private
        view
    {
        (address found, ECDSA.RecoverError fault,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (fault == ECDSA.RecoverError.NoError && found == creator) return;
        if (!SignatureChecker.isValidERC1271SignatureNowCalldata(creator, digest, signature)) {
            revert BadSignature(creator);
        }
    }

    function _checkOwner(uint256 id) private view {
        address owner = ownerOf(id);
        if (msg.sender != owner) revert NotTokenOwner(id, owner);
    }
}
