// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @title What workers earned, paid by one Merkle root for each epoch
/// @notice Money comes by plain transfers, as from `ComputeRental.withdrawTo(pool)`. For each epoch
/// the coordinator posts one root over (worker, cumulative earnings), whatever the number of
/// workers and subtasks; who has missed ten epochs claims all ten at once, from the newest root
/// alone.
///
/// A root waits `window` seconds, in which everybody can rebuild it from the published list, and
/// the guardian (or the owner) can veto it; after a veto as long again nothing can be posted. All
/// that was ever claimed is never more than the total of the root that is claimed from, and no
/// total is more than what the pool ever had: a wrong root pays at most its own total.
///
/// Whoever holds the coordinator's key gets, for each window in which nobody vetoes, at most what
/// is not yet claimed plus `capPerEpoch`. What the last root granted can be claimed while a bad one
/// waits, by anybody for everybody: then the cap is all that is at stake.
///
/// When the coordinator vanishes, the last root stays claimable for ever.
///
/// @dev Leaf: keccak256(bytes.concat(keccak256(abi.encode(worker, cumulative)))), pairs are hashed
/// in sorted order: OpenZeppelin's standard tree. Hashed twice, a leaf cannot be taken for an inner
/// node.
contract WorkPool is Ownable2Step, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @dev A root with its bound. Two storage slots.
    struct Epoch {
        bytes32 root;
        uint128 total;
        uint64 activeAt;
        uint64 number;
    }

    /// @dev Decimals of the token: one base unit is one micro-credit.
    uint8 private constant DECIMALS = 6;
    /// @notice The least and the most that `window` may be, seconds.
    uint64 public constant MIN_WINDOW = 1 minutes;
    /// @notice See `MIN_WINDOW`.
    uint64 public constant MAX_WINDOW = 90 days;
    /// @notice Seconds between the proposal of a guardian and the moment it may begin.
    uint256 public constant GUARDIAN_DELAY = 30 days;

    /// @notice What is paid, in base units.
    IERC20 public immutable token;
    /// @notice Seconds from the post of a root until it is claimed from; also the rest after a
    /// veto.
    uint64 public immutable window;
    /// @notice How much larger than the last a total may be, base units.
    uint128 public immutable capPerEpoch;

    /// @notice Who posts roots. The owner appoints it, and is it at first.
    address public coordinator;
    /// @notice Who vetoes roots.
    address public guardian;
    /// @notice Who may become guardian; zero for nobody.
    address public proposedGuardian;
    /// @notice From when on, seconds of Unix time.
    uint256 public guardianFrom;

    /// @notice All that workers ever claimed, base units.
    uint128 public claimedTotal;
    /// @notice What each worker ever claimed, base units.
    mapping(address worker => uint128 amount) public claimed;

    /// @dev The root before the newest; what is claimed from while the newest waits.
    Epoch private _active;
    /// @dev The newest root, open or not. After a veto: no root, and `activeAt` is the end of the
    /// rest.
    Epoch private _newest;

    /// @notice A root was posted, and can be claimed from at `activeAt` (seconds of Unix time).
    /// @param receiptsRoot Commits to the signed receipts behind the figures; no code reads it.
    /// @param listDigest Digest under which the list of leaves is published; no code reads it.
    event RootPosted(
        uint64 indexed number,
        bytes32 root,
        bytes32 receiptsRoot,
        bytes32 listDigest,
        uint128 total,
        uint64 activeAt
    );
    /// @notice Root `number` will never be claimed from.
    event RootVetoed(uint64 indexed number);
    /// @notice `worker` was paid `amount`, and `cumulative` since ever.
    event Claimed(address indexed worker, uint128 amount, uint128 cumulative);
    /// @notice The token refused to pay `worker`: it is owed `amount` as before.
    event Unpaid(address indexed worker, uint128 amount);
    /// @notice `coordinator` posts from now on.
    event CoordinatorAppointed(address indexed coordinator);
    /// @notice `guardian` may accept from `from` on; zero: the proposal was taken back.
    event GuardianProposed(address indexed guardian, uint256 from);
    /// @notice `guardian` vetoes from now on.
    event GuardianChanged(address indexed guardian);

    /// @notice An address that must not be zero is.
    error ZeroAddress();
    /// @notice The token has other decimals than `wanted`.
    error WrongDecimals(uint8 decimals, uint8 wanted);
    /// @notice The window is out of its bounds.
    error BadWindow(uint64 window, uint64 min, uint64 max);
    /// @notice A cap of nothing would let nothing be paid.
    error ZeroCap();
    /// @notice Only `allowed` may do this.
    error NotAllowed(address sender, address allowed);
    /// @notice It is not time yet: `from` is when, in seconds of Unix time.
    error TooEarly(uint256 from);
    /// @notice A root of zero means no root.
    error ZeroRoot();
    /// @notice The total may not fall: it was `last`.
    error TotalFalls(uint128 total, uint128 last);
    /// @notice The total may be `most` now: the last one and the cap.
    error AboveCap(uint128 total, uint256 most);
    /// @notice The total may be `funds` now: all that the pool ever had.
    error AboveFunds(uint128 total, uint256 funds);
    /// @notice No such root waits; `waiting` does (zero for none).
    error NotWaiting(uint64 number, uint64 waiting);
    /// @notice Whoever owns the pool must be able to appoint a coordinator.
    error CannotRenounce();
    /// @notice The worker has claimed `claimed` already, and the leaf says no more.
    error NothingNew(address worker, uint128 claimed);
    /// @notice Leaf and proof (the one at `index` of those given) are not under root `number`.
    error BadProof(uint256 index, uint64 number);
    /// @notice The pool cannot be a worker of its own: its money would count twice.
    error PoolAsWorker();
    /// @notice The leaves are worth more than their total: of it `left` is left, `due` is asked
    /// for.
    error TotalReached(address worker, uint256 due, uint256 left);
    /// @notice Workers, amounts and proofs are not equally many.
    error LengthMismatch(uint256 workers, uint256 cumulatives, uint256 proofs);

    /// @param token_ What is paid: a plain ERC-20 of 6 decimals.
    /// @param coordinator_ Owner, and who posts until the owner appoints another.
    /// @param guardian_ Who vetoes; with the key of the coordinator it protects nobody.
    /// @param window_ Seconds a root waits: `MIN_WINDOW` to `MAX_WINDOW`.
    /// @param capPerEpoch_ How much a total may grow by at once, base units.
    constructor(
        IERC20 token_,
        address coordinator_,
        address guardian_,
        uint64 window_,
        uint128 capPerEpoch_
    ) Ownable(coordinator_) {
        if (address(token_) == address(0) || guardian_ == address(0)) revert ZeroAddress();
        uint8 decimals = IERC20Metadata(address(token_)).decimals();
        if (decimals != DECIMALS) revert WrongDecimals(decimals, DECIMALS);
        if (window_ < MIN_WINDOW || window_ > MAX_WINDOW) {
            revert BadWindow(window_, MIN_WINDOW, MAX_WINDOW);
        }
        if (capPerEpoch_ == 0) revert ZeroCap();
        token = token_;
        window = window_;
        capPerEpoch = capPerEpoch_;
        coordinator = coordinator_;
        guardian = guardian_;
        emit CoordinatorAppointed(coordinator_);
        emit GuardianChanged(guardian_);
    }

    // Roots.

    /// @notice Post the root of the next epoch. Coordinator only.
    /// @param root Over all workers with what they earned since ever.
    /// @param receiptsRoot Commits to the receipts behind it.
    /// @param listDigest Where the list of leaves is published: without it nobody can check or
    /// claim.
    /// @param total Sum of the leaves, base units.
    /// @return number Of the root, counted from 1; one that is vetoed keeps its own.
    function post(bytes32 root, bytes32 receiptsRoot, bytes32 listDigest, uint128 total)
        external
        nonReentrant
        returns (uint64 number)
    {
        if (msg.sender != coordinator) revert NotAllowed(msg.sender, coordinator);
        if (root == 0) revert ZeroRoot();
        Epoch memory newest = _newest;
        if (block.timestamp < newest.activeAt) revert TooEarly(newest.activeAt);
        uint128 last;
        if (newest.root != 0) {
            _active = newest;
            last = newest.total;
        } else {
            last = _active.total;
        }

        if (total < last) revert TotalFalls(total, last);
        uint256 most = uint256(last) + capPerEpoch;
        if (total > most) revert AboveCap(total, most);
        uint256 had = funds();
        if (total > had) revert AboveFunds(total, had);

        number = newest.number + 1;
        uint64 activeAt = uint64(block.timestamp) + window;
        _newest = Epoch(root, total, activeAt, number);
        emit RootPosted(number, root, receiptsRoot, listDigest, total, activeAt);
    }

    /// @notice Throw away the root that waits. Guardian or owner. Nothing can be posted for
    /// `window` seconds then, so that a stolen key cannot tire the guardian out in one night.
    /// @param number Of the root: another one than was looked at is not thrown away.
    function veto(uint64 number) external {
        if (msg.sender != guardian && msg.sender != owner()) {
            revert NotAllowed(msg.sender, guardian);
        }
        (uint64 waits,,,) = waiting();
        if (number == 0 || number != waits) revert NotWaiting(number, waits);
        _newest = Epoch(0, 0, uint64(block.timestamp) + window, number);
        emit RootVetoed(number);
    }

    // Claims.

    /// @notice Pay a worker what it earned and has not had. Anybody may; the money goes to the
    /// worker.
    /// @param worker Who earned it.
    /// @param cumulative All it ever earned, as in its leaf, base units.
    /// @param proof From the leaf to the current root.
    function claim(address worker, uint128 cumulative, bytes32[] calldata proof)
        external
        nonReentrant
    {
        uint128 before = claimed[worker];
        if (cumulative <= before) revert NothingNew(worker, before);
        uint128 due = _book(worker, before, cumulative, proof, 0);
        emit Claimed(worker, due, cumulative);
        token.safeTransfer(worker, due);
    }

    /// @notice The same for many. Who has nothing new is passed over, and so is (with `Unpaid`)
    /// whom the token refuses: one barred worker does not hold up the others.
    /// @param workers Who earned.
    /// @param cumulatives All that each ever earned, as in the leaves, base units.
    /// @param proofs From each leaf to the current root; a bad one undoes all and is named.
    /// @return paid The sum that was paid, base units.
    function claimMany(
        address[] calldata workers,
        uint128[] calldata cumulatives,
        bytes32[][] calldata proofs
    ) external nonReentrant returns (uint256 paid) {
        if (workers.length != cumulatives.length || workers.length != proofs.length) {
            revert LengthMismatch(workers.length, cumulatives.length, proofs.length);
        }
        for (uint256 i; i < workers.length; ++i) {
            address worker = workers[i];
            uint128 before = claimed[worker];
            if (cumulatives[i] <= before) continue;
            uint128 due = _book(worker, before, cumulatives[i], proofs[i], i);
            if (token.trySafeTransfer(worker, due)) {
                emit Claimed(worker, due, cumulatives[i]);
                paid += due;
            } else {
                claimed[worker] = before;
                claimedTotal -= due;
                emit Unpaid(worker, due);
            }
        }
    }

    // Keys.

    /// @notice Let another key post. Owner only, at once: a stolen key is out with one transaction.
    /// @param coordinator_ Who posts from now on; zero for nobody.
    function appoint(address coordinator_) external onlyOwner {
        coordinator = coordinator_;
        emit CoordinatorAppointed(coordinator_);
    }

    /// @notice Begin to change the guardian, or (zero) take that back. Owner only. The guardian of
    /// now keeps its veto for `GUARDIAN_DELAY`, but cannot keep it for ever.
    /// @param guardian_ Who is to veto.
    function proposeGuardian(address guardian_) external onlyOwner {
        proposedGuardian = guardian_;
        guardianFrom = guardian_ == address(0) ? 0 : block.timestamp + GUARDIAN_DELAY;
        emit GuardianProposed(guardian_, guardianFrom);
    }

    /// @notice Become guardian, when the time has come: only who was proposed, which shows that its
    /// key is in somebody's hands.
    function acceptGuardian() external {
        if (msg.sender != proposedGuardian) revert NotAllowed(msg.sender, proposedGuardian);
        if (block.timestamp < guardianFrom) revert TooEarly(guardianFrom);
        guardian = msg.sender;
        proposedGuardian = address(0);
        guardianFrom = 0;
        emit GuardianChanged(msg.sender);
    }

    /// @notice Refused: without an owner a lost or stolen coordinator's key would freeze the pool.
    function renounceOwnership() public view override onlyOwner {
        revert CannotRenounce();
    }

    // To look at.

    /// @notice The root that is claimed from now.
    /// @return number Of it; zero when there is none yet.
    /// @return root Of it.
    /// @return total All that can ever be claimed under it, base units.
    function current() public view returns (uint64 number, bytes32 root, uint128 total) {
        Epoch storage epoch = _isOpen() ? _newest : _active;
        return (epoch.number, epoch.root, epoch.total);
    }

    /// @notice The root that waits for its window to pass; zeros when none does.
    /// @return number Of it.
    /// @return root Of it.
    /// @return total All that could ever be claimed under it, base units.
    /// @return activeAt From when on it is claimed from, seconds of Unix time.
    function waiting()
        public
        view
        returns (uint64 number, bytes32 root, uint128 total, uint64 activeAt)
    {
        Epoch memory epoch = _newest;
        if (epoch.root == 0 || block.timestamp >= epoch.activeAt) return (0, 0, 0, 0);
        return (epoch.number, epoch.root, epoch.total, epoch.activeAt);
    }

    /// @notice From when on the next root can be posted.
    /// @return Seconds of Unix time; zero before the first root.
    function postableFrom() external view returns (uint64) {
        return _newest.activeAt;
    }

    /// @notice All that the pool ever had: what it holds and what was claimed. The largest total
    /// that can be posted.
    /// @return Base units.
    function funds() public view returns (uint256) {
        return token.balanceOf(address(this)) + claimedTotal;
    }

    /// @notice The leaf of a worker.
    /// @param worker Who earned.
    /// @param cumulative All it ever earned, base units.
    /// @return Its hash.
    function leafOf(address worker, uint128 cumulative) public pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(worker, cumulative))));
    }

    // Within.

    /// @dev Check a claim of more than `before` and write it down; the caller pays what is
    /// returned.
    function _book(
        address worker,
        uint128 before,
        uint128 cumulative,
        bytes32[] calldata proof,
        uint256 index
    ) private returns (uint128 due) {
        if (worker == address(this)) revert PoolAsWorker();
        (uint64 number, bytes32 root, uint128 total) = current();
        if (!MerkleProof.verifyCalldata(proof, root, leafOf(worker, cumulative))) {
            revert BadProof(index, number);
        }
        due = cumulative - before;
        uint256 left = total - claimedTotal;
        if (due > left) revert TotalReached(worker, due, left);
        claimed[worker] = cumulative;
        claimedTotal += due;
    }

    /// @dev The newest root has done its waiting.
    function _isOpen() private view returns (bool) {
        return _newest.root != 0 && block.timestamp >= _newest.activeAt;
    }
}
