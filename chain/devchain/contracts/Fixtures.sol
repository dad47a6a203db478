// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;


/// ContractWallet is a payer with code: it accepts its owner's signatures by ERC-1271.
contract ContractWallet {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (signature.length < 65) return 0xffffffff;
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        address signer = ecrecover(hash, uint8(signature[64]), r, s);
        return signer != address(0) && signer == owner ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}

/// QuietUSD does nothing, and says nothing, when a nonce was used before
/// (PYUSD is such a token), and it names its domain by EIP-5267 alone.
contract QuietUSD {
    mapping(address => mapping(bytes32 => bool)) public authorizationState;
    mapping(address => uint256) public balanceOf;
    uint8 public constant decimals = 6;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
        emit Transfer(address(0), to, amount);
    }

    function eip712Domain()
        external
        view
        returns (bytes1, string memory, string memory, uint256, address, bytes32, uint256[] memory)
    {
        return (0x0f, "Quiet USD", "1", block.chainid, address(this), bytes32(0), new uint256[](0));
    }

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
        if (authorizationState[from][nonce]) return;
        authorizationState[from][nonce] = true;
        require(balanceOf[from] >= value, "balance");
        balanceOf[from] -= value;
        balanceOf[to] += value;
        // The other order of the two logs: Transfer first.
        emit Transfer(from, to, value);
        emit AuthorizationUsed(from, nonce);
    }
}

/// NoopUSD accepts every authorization and moves nothing.
contract NoopUSD {
    string public constant name = "Noop";
    string public constant version = "1";
    uint8 public constant decimals = 6;

    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    function transferWithAuthorization(
        address from,
        address,
        uint256,
        uint256,
        uint256,
        bytes32 nonce,
        uint8,
        bytes32,
        bytes32
    ) external {
        emit AuthorizationUsed(from, nonce);
    }

    function balanceOf(address) external pure returns (uint256) {
        return type(uint256).max;
    }

    function authorizationState(address, bytes32) external pure returns (bool) {
        return false;
    }
}
