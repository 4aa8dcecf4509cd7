// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {DevToken} from "../src/DevToken.sol";

/// @dev Keeps a hundredth of every transfer: less arrives than was sent.
contract FeeOnTransferToken is DevToken {
    function _update(address from, address to, uint256 amount) internal override {
        uint256 kept = from == address(0) || to == address(0) ? 0 : (amount + 99) / 100;
        super._update(from, to, amount - kept);
        if (kept != 0) super._update(from, address(0), kept);
    }
}

/// @dev Calls somebody in the middle of the next transfer, once, as ERC-777 does.
contract ReentrantToken is DevToken {
    address private target;
    bytes private callback;
    /// @dev What became of the call.
    bool public called;
    bool public succeeded;
    bytes public answer;

    function arm(address target_, bytes calldata callback_) external {
        (target, callback, called, succeeded, answer) = (target_, callback_, false, false, "");
    }

    function _update(address from, address to, uint256 amount) internal override {
        address armed = target;
        if (armed != address(0) && from != address(0)) {
            target = address(0);
            called = true;
            (succeeded, answer) = armed.call(callback);
        }
        super._update(from, to, amount);
    }
}

/// @dev Says false where others revert, and moves nothing: while `lying`, whatever is asked.
contract FalseToken is DevToken {
    bool public lying;

    function lie(bool lying_) external {
        lying = lying_;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return !lying && super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        return !lying && super.transferFrom(from, to, amount);
    }
}

/// @dev Reverts for accounts that its issuer does not like, as the large stable tokens do.
contract BlacklistToken is DevToken {
    mapping(address account => bool) public listed;

    error Blacklisted(address account);

    function blacklist(address account, bool listed_) external {
        listed[account] = listed_;
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (listed[from]) revert Blacklisted(from);
        if (listed[to]) revert Blacklisted(to);
        super._update(from, to, amount);
    }
}

/// @dev Returns nothing at all, as the oldest tokens do: not an ERC20 to the letter, yet money. No
/// permit either.
contract SilentToken {
    mapping(address account => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;

    function mint(address account, uint256 amount) external {
        balanceOf[account] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }

    function decimals() external pure returns (uint8) {
        return 6;
    }
}
