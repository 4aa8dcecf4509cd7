// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComputeRental} from "../src/ComputeRental.sol";

/// @dev What one can do to a rental.
enum Moves {
    Lock,
    TopUpMoney,
    TopUpTime,
    Redeem,
    Settle,
    SettleBare, // without a signature
    Release,
    ReleaseBare, // without a signature
    Refund,
    Dispute,
    Resolve,
    TimeOut,
    Withdraw,
    Wait
}

/// @dev One of them by one actor: 0 client, 1 provider, 2 payee, 3 arbiter, 4 an outsider.
struct Move {
    Moves kind;
    uint256 actor;
    uint256 value;
}

/// @dev One rental as the page docs/contracts/rental.md has it; owed to payee, fee wallet, client.
struct Model {
    uint256 time;
    uint256 state;
    uint256 deadline;
    uint256 disputedAt;
    uint256 locked;
    uint256 paid;
    uint256 signed;
    uint256[3] owed;
}

/// @dev The rules, once more and in another form: who may do what when, and what it changes.
library RentalModel {
    uint256 internal constant FIRST = 66;
    uint256 internal constant MORE = 34;
    uint256 private constant START = 1_800_000_000;
    uint256 private constant DEADLINE = START + 10 days;
    uint256 private constant LATER = DEADLINE + 2 days;
    uint256 private constant GRACE = 1 days;
    uint256 private constant WINDOW = 3 days;
    uint256 private constant NONE = uint256(ComputeRental.State.None);
    uint256 private constant LOCKED = uint256(ComputeRental.State.Locked);
    uint256 private constant DISPUTED = uint256(ComputeRental.State.Disputed);
    uint256 private constant CLOSED = uint256(ComputeRental.State.Closed);

    /// @dev Cumulative figures: nothing, one whose toll is rounded, FIRST, and all.
    function figures() internal pure returns (uint256[4] memory) {
        return [uint256(0), 34, FIRST, FIRST + MORE];
    }

    function none(uint256 time) internal pure returns (Model memory model) {
        model.time = time;
    }

    function copy(Model memory from, Model memory to) internal pure {
        (to.time, to.state, to.deadline) = (from.time, from.state, from.deadline);
        (to.disputedAt, to.locked) = (from.disputedAt, from.locked);
        (to.paid, to.signed) = (from.paid, from.signed);
        for (uint256 i = 0; i < 3; ++i) to.owed[i] = from.owed[i];
    }

    /// @dev Every move by every actor.
    function all() internal pure returns (Move[] memory moves) {
        moves = new Move[](256);
        uint256 size = 0;
        uint256[4] memory values = figures();
        for (uint256 actor = 0; actor < 5; ++actor) {
            moves[size++] = Move(Moves.TopUpMoney, actor, MORE);
            moves[size++] = Move(Moves.TopUpTime, actor, LATER);
            moves[size++] = Move(Moves.TopUpTime, actor, DEADLINE - 1);
            moves[size++] = Move(Moves.Refund, actor, 0);
            moves[size++] = Move(Moves.Dispute, actor, 0);
            moves[size++] = Move(Moves.TimeOut, actor, 0);
            for (uint256 i = 0; i < values.length; ++i) {
                for (uint8 kind = uint8(Moves.Redeem); kind <= uint8(Moves.ReleaseBare); ++kind) {
                    moves[size++] = Move(Moves(kind), actor, values[i]);
                }
                moves[size++] = Move(Moves.Resolve, actor, values[i]);
            }
            for (uint256 i = 0; i < 3; ++i) moves[size++] = Move(Moves.Withdraw, actor, i);
        }
        moves[size++] = Move(Moves.Lock, 0, FIRST); // another's would be another rental
        moves[size++] = Move(Moves.Wait, 4, 0);
        assembly {
            mstore(moves, size)
        }
    }

    /// @dev What would lead out of the search: money is added once.
    function isBeyond(Model memory model, Move memory move) internal pure returns (bool) {
        return move.kind == Moves.TopUpMoney && model.locked > FIRST;
    }

    /// @dev Changes `model` and says true, or says false.
    function step(Model memory model, Move memory move) internal pure returns (bool) {
        Moves kind = move.kind;
        if (kind == Moves.Wait) return _wait(model);
        if (kind == Moves.Withdraw) {
            bool isOwed = model.owed[move.value] != 0;
            model.owed[move.value] = 0;
            return isOwed;
        }
        if (model.state == NONE) return kind == Moves.Lock && _lock(model);
        if (model.state == LOCKED) return _stepLocked(model, move);
        if (model.state == DISPUTED) return _stepDisputed(model, move);
        return false;
    }

    function _lock(Model memory model) private pure returns (bool) {
        (model.state, model.deadline, model.locked) = (LOCKED, DEADLINE, FIRST);
        return true;
    }

    function _stepLocked(Model memory model, Move memory move) private pure returns (bool) {
        Moves kind = move.kind;
        uint256 to = move.value;
        bool isClient = move.actor == 0;
        bool isProvider = move.actor == 1;
        uint256 back = model.deadline + GRACE;
        if (kind == Moves.TopUpMoney) {
            if (!isClient || model.time >= back) return false;
            model.locked += to;
            return true;
        }
        if (kind == Moves.TopUpTime) {
            if (!isClient || model.time >= back || to <= model.deadline) return false;
            model.deadline = to;
            return true;
        }
        if (kind == Moves.Redeem) return to > model.paid && _pay(model, to);
        if (kind == Moves.Settle || kind == Moves.SettleBare) {
            if (!isProvider || to < model.paid) return false;
            if (kind == Moves.SettleBare && to != model.paid) return false;
            return _pay(model, to) && _close(model);
        }
        if (kind == Moves.Release || kind == Moves.ReleaseBare) {
            if (!isClient || to < model.paid) return false;
            if (kind == Moves.ReleaseBare && to != model.locked) return false;
            return _pay(model, to) && _close(model);
        }
        if (kind == Moves.Refund) return model.time >= back && _close(model);
        if (kind != Moves.Dispute) return false;
        if (!(isClient && model.time < model.deadline) && !(isProvider && model.time < back)) {
            return false;
        }
        (model.state, model.disputedAt) = (DISPUTED, model.time);
        return true;
    }

    function _stepDisputed(Model memory model, Move memory move) private pure returns (bool) {
        uint256 to = move.value;
        uint256 floor = model.signed > model.paid ? model.signed : model.paid;
        bool isOver = model.time >= model.disputedAt + WINDOW;
        if (move.kind == Moves.Redeem) {
            if (to <= floor || to > model.locked) return false;
            model.signed = to;
            return true;
        }
        if (move.kind == Moves.Resolve) {
            return move.actor == 3 && !isOver && to >= floor && _pay(model, to) && _close(model);
        }
        return move.kind == Moves.TimeOut && isOver && _pay(model, floor) && _close(model);
    }

    function _pay(Model memory model, uint256 to) private pure returns (bool) {
        if (to > model.locked) return false;
        uint256 fee = (to * 3) / 100 - (model.paid * 3) / 100;
        model.owed[0] += to - model.paid - fee;
        model.owed[1] += fee;
        model.paid = to;
        return true;
    }

    function _close(Model memory model) private pure returns (bool) {
        model.owed[2] += model.locked - model.paid;
        model.state = CLOSED;
        return true;
    }

    /// @dev To the next second that matters; the model's time is 0 if there is none.
    function _wait(Model memory model) private pure returns (bool) {
        uint256[6] memory limits = _limits(model);
        uint256 next = type(uint256).max;
        for (uint256 i = 0; i < limits.length; ++i) {
            if (limits[i] > model.time && limits[i] < next) next = limits[i];
        }
        model.time = next == type(uint256).max ? 0 : next;
        return model.time != 0;
    }

    /// @dev Just before, at and after what ends and begins in this state.
    function _limits(Model memory model) private pure returns (uint256[6] memory limits) {
        if (model.state == LOCKED) {
            uint256 deadline = model.deadline;
            uint256 back = deadline + GRACE;
            return [deadline - 1, deadline, deadline + 1, back - 1, back, back + 1];
        }
        if (model.state == DISPUTED) {
            uint256 end = model.disputedAt + WINDOW;
            return [end - 1, end, end + 1, 0, 0, 0];
        }
    }

    /// @dev What tells two states apart: of times only how many limits are over, and for a deadline
    /// whether it is the second, while that matters.
    function key(Model memory model) internal pure returns (bytes32) {
        uint256[6] memory limits = _limits(model);
        uint256 class = model.state == LOCKED && model.deadline == LATER ? limits.length + 1 : 0;
        for (uint256 i = 0; i < limits.length; ++i) if (model.time >= limits[i]) ++class;
        uint256[5] memory rest =
            [model.state, model.locked, model.paid, model.signed, class];
        return keccak256(abi.encode(rest, model.owed));
    }
}
