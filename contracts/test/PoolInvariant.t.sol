// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {DevToken} from "../src/DevToken.sol";
import {WorkPool} from "../src/WorkPool.sol";
import {BlacklistToken} from "./HostileTokens.sol";
import {PoolCase, Tree} from "./PoolCase.t.sol";
import {Base} from "./Vm.sol";

/// @dev Everybody around a pool, honest and not, in any order. It keeps books of its own.
contract PoolHandler is Base {
    uint256 public constant WORKERS = 6;
    BlacklistToken private immutable TOKEN;
    WorkPool private immutable POOL;
    address private immutable COORDINATOR;
    address private immutable GUARDIAN;

    /// @dev What each earned so far, and what the leaves of each root said.
    uint128[WORKERS] private earned;
    mapping(uint64 number => uint128[WORKERS]) private leaves;
    uint128[WORKERS] private lastClaimed;

    uint256 public time = 1_800_000_000;
    uint256 public paidIn;
    uint64 public claims;
    uint64 public posts;
    /// @dev What was seen and must not be.
    string public fault;

    constructor(BlacklistToken token, WorkPool pool, address coordinator, address guardian) {
        (TOKEN, POOL, COORDINATOR, GUARDIAN) = (token, pool, coordinator, guardian);
    }

    function worker(uint256 i) public pure returns (address) {
        return address(uint160(0x100000 + i));
    }

    function all() private pure returns (address[] memory workers) {
        workers = new address[](WORKERS);
        for (uint256 i; i < WORKERS; ++i) {
            workers[i] = worker(i);
        }
    }

    function list(uint128[WORKERS] memory amounts) private pure returns (uint128[] memory copy) {
        copy = new uint128[](WORKERS);
        for (uint256 i; i < WORKERS; ++i) {
            copy[i] = amounts[i];
        }
    }

    /// @dev Sets the clock, which goes back after each call, and looks at what must never happen.
    modifier watched() {
        vm.warp(time);
        (uint64 before,, uint128 totalBefore) = POOL.current();
        _;
        for (uint256 i; i < WORKERS; ++i) {
            uint128 claimed = POOL.claimed(worker(i));
            if (claimed < lastClaimed[i]) fault = "claimed fell";
            lastClaimed[i] = claimed;
        }
        (uint64 number,, uint128 total) = POOL.current();
        if (number < before || total < totalBefore) fault = "an older root came back";
    }

    /// @dev A job is done: its client pays the pool, mostly what the worker earned.
    function work(uint256 seed, uint128 amount, uint256 paid) external watched {
        amount = uint128(bound(amount, 1, 300_000));
        earned[seed % WORKERS] += amount;
        pay(paid % 8 == 7 ? bound(paid, 0, 300_000) : amount);
    }

    function donate(uint256 amount) external watched {
        pay(bound(amount, 0, 100_000));
    }

    function pay(uint256 amount) private {
        paidIn += amount;
        TOKEN.mint(address(POOL), amount);
    }

    function wait(uint256 halves) external watched {
        time += (1 + halves % 4) * 12 hours;
        vm.warp(time);
    }

    /// @dev What was earned, with the sum or (`lie`) another total, when it can be posted or
    /// (`early`) at once; refused or not, as it may be.
    function post(uint256 lie, uint256 early) external watched {
        if (early % 4 != 3 && time < POOL.postableFrom()) time = POOL.postableFrom();
        vm.warp(time);
        uint128[] memory amounts = list(earned);
        uint256 total;
        for (uint256 i; i < WORKERS; ++i) {
            total += amounts[i];
        }
        (,, uint128 last) = POOL.current();
        if (lie % 8 == 7) total = bound(lie, 0, 2 * total + 1);
        else if (lie % 4 == 2 && total > last) total = (total + last) / 2;
        vm.prank(COORDINATOR);
        uint64 number =
            POOL.post(Tree.build(all(), amounts)[0], bytes32(0), bytes32(0), uint128(total));
        leaves[number] = earned;
        ++posts;
        if (total > paidIn) fault = "a total above all that was paid in";
        if (total > uint256(last) + POOL.capPerEpoch()) fault = "a total above the cap";
    }

    /// @dev Seldom, or no root would ever open.
    function veto(uint64 number) external watched {
        (uint64 waits,,,) = POOL.waiting();
        vm.prank(GUARDIAN);
        POOL.veto(number % 8 == 7 ? waits : number);
        (uint64 now_,,) = POOL.current();
        if (now_ == waits) fault = "a vetoed root opened";
    }

    function bar(uint256 seed, bool barred) external {
        TOKEN.blacklist(worker(seed % WORKERS), barred);
    }

    /// @dev For the next who is due something; or, with `older`, by the leaf of some older root.
    function claim(uint256 seed, uint64 older) external watched {
        uint256 i = seed % WORKERS;
        (uint64 number,,) = POOL.current();
        if (older % 4 == 3) {
            number = older % (number + 1);
        } else {
            while (leaves[number][i] <= POOL.claimed(worker(i))) {
                i = (i + 1) % WORKERS;
                if (i == seed % WORKERS) break;
            }
        }
        uint128[] memory amounts = list(leaves[number]);
        bytes32[] memory nodes = Tree.build(all(), amounts);
        POOL.claim(worker(i), amounts[i], Tree.proof(nodes, i));
        ++claims;
        if (POOL.claimed(worker(i)) != amounts[i]) fault = "paid something else than the leaf";
    }

    function claimMany(uint256 from) external watched {
        (uint64 number,,) = POOL.current();
        uint128[] memory amounts = list(leaves[number]);
        bytes32[] memory nodes = Tree.build(all(), amounts);
        uint256 count = WORKERS - (from % WORKERS);
        address[] memory workers = new address[](count);
        uint128[] memory some = new uint128[](count);
        bytes32[][] memory paths = new bytes32[][](count);
        for (uint256 k; k < count; ++k) {
            uint256 i = k + (from % WORKERS);
            (workers[k], some[k], paths[k]) = (worker(i), amounts[i], Tree.proof(nodes, i));
        }
        if (POOL.claimMany(workers, some, paths) != 0) ++claims;
    }

    /// @dev Workers spend what they have, also back into the pool.
    function giveBack(uint256 seed, uint256 amount) external watched {
        address who = worker(seed % WORKERS);
        amount = bound(amount, 0, TOKEN.balanceOf(who));
        vm.prank(who);
        TOKEN.transfer(address(POOL), amount);
        paidIn += amount;
        returned[who] += amount;
    }

    mapping(address worker => uint256) public returned;
}

/// @dev What holds after every call of anybody.
contract PoolInvariantTest is PoolCase {
    PoolHandler private handler;

    function setUp() public override {
        super.setUp();
        BlacklistToken hostile = new BlacklistToken();
        token = DevToken(address(hostile));
        pool = newPool(400_000); // a few jobs
        handler = new PoolHandler(hostile, pool, COORDINATOR, GUARDIAN);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_claims_stay_within_the_current_total() public {
        vm.warp(handler.time());
        (,, uint128 total) = pool.current();
        check("claimedTotal <= total", pool.claimedTotal() <= total);
        check("total <= balance + claimedTotal", total <= pool.funds());
    }

    function invariant_every_unit_is_in_the_pool_or_claimed() public view {
        same("funds", pool.funds(), handler.paidIn());
        uint256 claimed;
        for (uint256 i; i < handler.WORKERS(); ++i) {
            address who = handler.worker(i);
            uint256 amount = pool.claimed(who);
            same("in hand", token.balanceOf(who) + handler.returned(who), amount);
            claimed += amount;
        }
        same("claimedTotal", pool.claimedTotal(), claimed);
    }

    function invariant_nothing_that_must_not_be_was_seen() public view {
        string memory fault = handler.fault();
        check(fault, bytes(fault).length == 0);
    }

    /// @dev The calls above reach what they are to try: else the invariants would hold of nothing.
    function test_the_handler_posts_and_claims() public {
        handler.work(0, 99, 0); // one more is earned
        handler.donate(1_000);
        handler.post(0, 0);
        handler.wait(1);
        handler.claim(5, 1);
        handler.work(1, 69, 0);
        handler.post(0, 0);
        handler.wait(1);
        handler.claimMany(0);
        same("posts", handler.posts(), 2);
        same("claims", handler.claims(), 2);
        same("claimed", pool.claimedTotal(), 170);
        invariant_every_unit_is_in_the_pool_or_claimed();
        invariant_nothing_that_must_not_be_was_seen();
    }
}
