// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";
import {RentalBase} from "./RentalBase.sol";
import {Model, Move, Moves, RentalModel} from "./RentalModel.sol";

/// @dev Every state that one rental can come to, with small sums: depth first, each move by each
/// actor at each moment that matters, compared with the model of RentalModel.sol. In each new state
/// all people vanish, and an outsider has to bring the money to its owners.
///
/// The bounds: one rental, FIRST locked and MORE added at most once, four figures, two deadlines,
/// and a fee wallet that stays. Times are those just before, at and just after each limit.
contract RentalSearchTest is RentalBase {
    uint256 private constant DEPTH = 64;
    uint256 private constant TABLE = 1 << 15;
    uint256 private constant MOST_STATES = 20_000;
    /// @dev What there is: a search that finds less has lost its way. docs/contracts/rental.md has
    /// these figures, too.
    uint256 private constant STATES = 826;
    uint256 private constant TRANSITIONS = 12_280;

    /// @dev One state on the path from the beginning: how to come back to it, what is next there.
    struct Node {
        uint256 snapshot;
        uint256 next;
        Model here;
    }

    struct Search {
        Move[] moves;
        bytes32[] seen;
        Node[] path;
        uint256 depth;
        Model there; // where the last move led
        bool isElsewhere; // the chain, than in the state of the node
        uint256 states;
        uint256 done;
        uint256 refused;
        uint256 deepest;
        uint256[4] perState;
    }

    error Undone();

    bytes32 private id;
    uint256 private wealth; // the client's, at first
    mapping(uint256 figure => bytes) private vouchers;
    mapping(uint256 figure => bytes) private consents;

    function setUp() public override {
        super.setUp();
        id = rental.rentalId(client, SALT);
        wealth = token.balanceOf(client);
        uint256[4] memory figures = RentalModel.figures();
        for (uint256 i = 0; i < figures.length; ++i) {
            vouchers[figures[i]] = _voucher(id, uint128(figures[i]));
            consents[figures[i]] = _consent(PROVIDER_KEY, id, uint128(figures[i]));
        }
    }

    function test_every_state_and_a_way_out_of_each() public {
        vm.pauseGasMetering(); // or the gas limit of one test ends it
        Search memory search;
        search.moves = RentalModel.all();
        search.seen = new bytes32[](TABLE);
        search.path = new Node[](DEPTH);
        search.there = RentalModel.none(START);
        _enter(search);
        uint256 free = _free();
        while (true) {
            _reset(free); // or the calls' bytes fill the memory
            Node memory node = search.path[search.depth];
            if (node.next < search.moves.length) {
                _try(search, node, search.moves[node.next++]);
            } else if (search.depth == 0) {
                break;
            } else {
                --search.depth;
                search.isElsewhere = true;
            }
        }
        _write(search);
        _same(search.states, STATES, "states");
        _same(search.done, TRANSITIONS, "transitions");
    }

    /// @dev One move from a node: the model and the contract do the same. Tried in a call that
    /// reverts: that is cheaper than a snapshot, which copies all logs so far. Only what leads to a
    /// new state is done to stay.
    function _try(Search memory search, Node memory node, Move memory move) private {
        Model memory there = search.there;
        if (RentalModel.isBeyond(node.here, move)) return;
        if (search.isElsewhere) vm.revertToState(node.snapshot);
        search.isElsewhere = false;
        vm.warp(node.here.time);
        RentalModel.copy(node.here, there);
        bool isAllowed = RentalModel.step(there, move);
        _undone(abi.encodeCall(this.tryMove, (node.here, move, isAllowed, there)));
        if (!isAllowed) {
            ++search.refused;
            return;
        }
        ++search.done;
        if (!_isNew(search.seen, RentalModel.key(there))) return;
        vm.warp(node.here.time);
        _does(move, there.time);
        ++search.depth;
        _enter(search);
    }

    /// @dev Keep a new state, then leave it to the outsider alone.
    function _enter(Search memory search) private {
        Node memory node = search.path[search.depth];
        require(++search.states <= MOST_STATES, "the search has grown beyond its bound");
        if (search.depth > search.deepest) search.deepest = search.depth;
        ++search.perState[search.there.state];
        node.snapshot = vm.snapshotState();
        node.next = 0;
        RentalModel.copy(search.there, node.here);
        _undone(abi.encodeCall(this.tryToEmpty, (node.here)));
    }

    /// @dev Call this contract, which reverts with Undone; with anything else it is a failure.
    function _undone(bytes memory call_) private {
        (, bytes memory fault) = address(this).call(call_);
        if (bytes4(fault) == Undone.selector) return;
        assembly {
            revert(add(fault, 32), mload(fault))
        }
    }

    function tryMove(
        Model calldata here,
        Move calldata move,
        bool isAllowed,
        Model calldata there
    ) external {
        bool isDone = _does(move, there.time);
        if (isDone != isAllowed) _disagree(here, move, isAllowed);
        if (isDone) _agrees(there);
        revert Undone();
    }

    function tryToEmpty(Model calldata here) external {
        _empties(here);
        revert Undone();
    }

    /// @dev Client, provider, payee and arbiter are gone for ever.
    function _empties(Model memory there) private {
        vm.startPrank(outsider);
        uint256 due = there.paid;
        if (there.state == uint8(ComputeRental.State.Locked)) {
            if (there.time < rental.refundTime(id)) vm.warp(rental.refundTime(id));
            rental.refund(id);
        } else if (there.state == uint8(ComputeRental.State.Disputed)) {
            if (there.time < rental.disputeEnd(id)) vm.warp(rental.disputeEnd(id));
            rental.resolveByTimeout(id);
            if (there.signed > due) due = there.signed;
        }
        if (rental.owed(payee) != 0) rental.withdrawTo(payee);
        if (rental.owed(fees) != 0) rental.withdrawTo(fees);
        if (rental.owed(client) != 0) rental.withdrawTo(client);
        vm.stopPrank();
        _same(token.balanceOf(address(rental)), 0, "balance at the end");
        _same(rental.totalLiability(), 0, "liability at the end");
        _same(token.balanceOf(fees), (due * 3) / 100, "the fee wallet's in the end");
        _same(token.balanceOf(payee), due - (due * 3) / 100, "the payee's in the end");
        _same(token.balanceOf(client), wealth - due, "the client's in the end");
    }

    /// @dev Whether the contract lets the actor.
    function _does(Move memory move, uint256 time) private returns (bool isDone) {
        if (move.kind == Moves.Wait) {
            vm.warp(time);
            return time != 0;
        }
        bytes memory call_ = _call(move);
        vm.prank(_actor(move.actor));
        (isDone,) = address(rental).call(call_);
    }

    function _actor(uint256 actor) private view returns (address) {
        return [client, provider, payee, arbiter, outsider][actor];
    }

    function _call(Move memory move) private view returns (bytes memory) {
        Moves kind = move.kind;
        uint128 figure = uint128(move.value);
        if (kind == Moves.Lock) {
            return abi.encodeCall(rental.lock, (SALT, provider, payee, figure, DEADLINE, SPEC));
        }
        if (kind == Moves.TopUpMoney) {
            return abi.encodeCall(rental.topUp, (id, figure, rental.rentals(id).deadline));
        }
        if (kind == Moves.TopUpTime) {
            return abi.encodeCall(rental.topUp, (id, 0, uint64(move.value)));
        }
        if (kind == Moves.Redeem) {
            return abi.encodeCall(rental.redeem, (id, figure, ROOT, vouchers[figure]));
        }
        if (kind == Moves.Settle) {
            return abi.encodeCall(rental.settle, (id, figure, ROOT, vouchers[figure]));
        }
        if (kind == Moves.SettleBare) {
            return abi.encodeCall(rental.settle, (id, figure, ROOT, ""));
        }
        if (kind == Moves.Release) {
            return abi.encodeCall(rental.release, (id, figure, ROOT, consents[figure]));
        }
        if (kind == Moves.ReleaseBare) {
            return abi.encodeCall(rental.release, (id, figure, ROOT, ""));
        }
        if (kind == Moves.Refund) return abi.encodeCall(rental.refund, (id));
        if (kind == Moves.Dispute) return abi.encodeCall(rental.dispute, (id));
        if (kind == Moves.Resolve) return abi.encodeCall(rental.resolve, (id, figure));
        if (kind == Moves.TimeOut) return abi.encodeCall(rental.resolveByTimeout, (id));
        return abi.encodeCall(rental.withdrawTo, ([payee, fees, client][move.value]));
    }

    /// @dev The contract is where the model is, and has what it owes.
    function _agrees(Model memory model) private view {
        ComputeRental.Rental memory it = rental.rentals(id);
        _same(uint8(it.state), model.state, "state");
        _same(it.deadline, model.deadline, "deadline");
        _same(it.disputedAt, model.disputedAt, "disputedAt");
        _same(it.locked, model.locked, "locked");
        _same(it.paid, model.paid, "paid");
        _same(it.signed, model.signed, "signed");
        bool isOpen = it.state != ComputeRental.State.Closed;
        uint256 open = isOpen ? model.locked - model.paid : 0;
        _isOwed(model.owed[0], model.owed[1], model.owed[2], open);
        uint256 out = token.balanceOf(payee) + token.balanceOf(fees) + token.balanceOf(client);
        _same(out + token.balanceOf(address(rental)), wealth, "all money");
    }

    function _disagree(Model memory here, Move memory move, bool isAllowed) private pure {
        string memory what = string.concat(
            isAllowed ? "refused, should be allowed: " : "allowed, should be refused: ",
            string.concat("move ", vm.toString(uint8(move.kind))),
            string.concat(" by ", vm.toString(move.actor), " value ", vm.toString(move.value))
        );
        revert Differs(what, here.state, here.time);
    }

    /// @dev An open-addressed set of keys, in memory: storage would go back with the states.
    function _isNew(bytes32[] memory seen, bytes32 key) private pure returns (bool) {
        uint256 slot = uint256(key) % TABLE;
        while (seen[slot] != 0) {
            if (seen[slot] == key) return false;
            slot = (slot + 1) % TABLE;
        }
        seen[slot] = key;
        return true;
    }

    function _free() private pure returns (uint256 free) {
        assembly {
            free := mload(0x40)
        }
    }

    function _reset(uint256 free) private pure {
        assembly {
            mstore(0x40, free)
        }
    }

    function _write(Search memory search) private {
        string memory text = string.concat('{"states": ', vm.toString(search.states));
        text = string.concat(text, ', "locked": ', vm.toString(search.perState[1]));
        text = string.concat(text, ', "disputed": ', vm.toString(search.perState[2]));
        text = string.concat(text, ', "closed": ', vm.toString(search.perState[3]));
        text = string.concat(text, ', "transitions": ', vm.toString(search.done));
        text = string.concat(text, ', "refused": ', vm.toString(search.refused));
        text = string.concat(text, ', "deepest": ', vm.toString(search.deepest), "}\n");
        vm.writeFile("out/state-search.json", text);
    }
}
