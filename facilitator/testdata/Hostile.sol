// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// HostileUSD behaves as long as it is only simulated. eth_call pays no gas
/// price, so the token knows a simulation when it sees one, and does what its
/// mode says in a real transaction.
contract HostileUSD {
    uint256 public constant HONEST = 0;
    uint256 public constant BURN = 1; // all the gas there is
    uint256 public constant REVERT = 2;
    uint256 public constant NOTHING = 3; // success, no log, no transfer
    uint256 public constant LESS = 4; // transfers one unit less
    uint256 public constant ELSEWHERE = 5; // transfers to somebody else
    uint256 public constant APART = 6; // AuthorizationUsed for another nonce
    uint256 public constant ALWAYS_BURN = 7; // in simulations too
    uint256 public constant ALWAYS_BOMB = 8; // reverts with as much data as the gas buys

    string public constant name = "USDC";
    string public constant version = "2";
    uint8 public constant decimals = 6;
    uint256 public immutable mode;
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(bytes32 => bool)) public authorizationState;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    constructor(uint256 mode_) {
        mode = mode_;
    }

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
    }

    /// It takes any signature: what a facilitator refuses here, it refused by itself.
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32 nonce,
        uint8,
        bytes32,
        bytes32
    ) external {
        _move(from, to, value, nonce);
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32 nonce,
        bytes memory
    ) external {
        _move(from, to, value, nonce);
    }

    function _move(address from, address to, uint256 value, bytes32 nonce) private {
        require(!authorizationState[from][nonce], "used");
        if (mode == ALWAYS_BURN) _burn();
        if (mode == ALWAYS_BOMB) _bomb();
        if (tx.gasprice > 0) {
            if (mode == BURN) _burn();
            if (mode == REVERT) revert("not today");
            if (mode == NOTHING) return;
            if (mode == LESS) value -= 1;
            if (mode == ELSEWHERE) to = address(0xdead);
        }
        authorizationState[from][nonce] = true;
        balanceOf[from] -= value;
        balanceOf[to] += value;
        emit AuthorizationUsed(from, mode == APART ? keccak256(abi.encode(nonce)) : nonce);
        emit Transfer(from, to, value);
    }

    function _burn() private view {
        uint256 n;
        while (gasleft() > 100) n++;
        assembly ("memory-safe") {
            mstore(0, n)
            invalid()
        }
    }

    function _bomb() private view {
        uint256 size = 200_000;
        if (gasleft() < 120_000) size = 1_000;
        assembly {
            revert(0, size)
        }
    }
}

/// HostileWallet is a payer with code that answers ERC-1271's question wrongly.
contract HostileWallet {
    uint256 public constant MAGIC = 0; // properly: takes everything
    uint256 public constant NO = 1;
    uint256 public constant TRUE = 2; // true is not the magic value
    uint256 public constant RIGHT = 3; // the magic value at the wrong end of the word
    uint256 public constant SHORT = 4; // four bytes only
    uint256 public constant DIRTY = 5; // the magic value and more in the same word
    uint256 public constant REVERTS = 6;
    uint256 public constant BURNS = 7;
    uint256 public constant EMPTY = 8;
    uint256 public constant BOMB = 9; // the magic value and 100 kB

    uint256 public immutable mode;

    constructor(uint256 mode_) {
        mode = mode_;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        bytes32 magic = bytes32(bytes4(0x1626ba7e));
        uint256 m = mode;
        if (m == REVERTS) revert("no");
        assembly {
            switch m
            case 0 {
                mstore(0, magic)
                return(0, 32)
            }
            case 2 {
                mstore(0, 1)
                return(0, 32)
            }
            case 3 {
                mstore(0, shr(224, magic))
                return(0, 32)
            }
            case 4 {
                mstore(0, magic)
                return(0, 4)
            }
            case 5 {
                mstore(0, or(magic, 1))
                return(0, 32)
            }
            case 7 { for {} 1 {} { pop(gas()) } }
            case 8 { return(0, 0) }
            case 9 {
                mstore(0, magic)
                return(0, 100000)
            }
            default {
                mstore(0, shl(224, 0xffffffff))
                return(0, 32)
            }
        }
    }
}

/// Factory is what an EIP-6492 signature names. It counts how often anybody called it.
contract Factory {
    uint256 public calls;

    fallback() external {
        calls++;
    }
}
