// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title Money of a development chain
/// @notice A plain token with 6 decimals and permits, worth nothing: anybody makes as much as he
/// likes. Where money is worth something the contracts are given the chain's own stable token.
contract DevToken is ERC20, ERC20Permit {
    /// @notice Empty at first: whoever wants money mints it.
    constructor() ERC20("Development credit", "DEV") ERC20Permit("Development credit") {}

    /// @notice Make money.
    /// @param account Who gets it.
    /// @param amount How much, in micro-credits.
    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    /// @notice One base unit is one micro-credit.
    /// @return Always 6.
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
