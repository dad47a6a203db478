// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

interface IERC20 {
    function balanceOf(address who) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
}

interface IERC3009 {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external;
}

interface IERC1271 {
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4);
}

/// What brings the money of a deposit: it must have sent exactly amount of
/// token to the channels when it returns.
interface ICollector {
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata data) external;
}

/// Channels is clawr's own implementation of x402's batch settlement on EVM
/// (scheme_batch_settlement_evm.md): one-way payment channels, funded by a
/// deposit, drawn on by cumulative vouchers. It stands on the development chain
/// at the address that official clients sign for, and nowhere else.
///
/// A channel keeps two numbers: balance, what was deposited less what was
/// refunded and withdrawn; and totalClaimed, what belongs to the receiver. So
/// balance - totalClaimed is the payer's, and totalClaimed <= balance always.
contract Channels {
    struct ChannelConfig {
        address payer;
        address payerAuthorizer; // the key of vouchers; 0: the payer, by ERC-1271 where it has code
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay; // seconds
        bytes32 salt;
    }

    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed; // what it shall be afterwards, at most maxClaimableAmount
    }

    struct Channel {
        uint128 balance;
        uint128 totalClaimed;
    }

    struct Withdrawal {
        uint128 amount;
        uint40 initiatedAt;
    }

    struct Receiver {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    uint40 public constant MIN_WITHDRAW_DELAY = 15 minutes;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    bytes32 public constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 public constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 public constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 public constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );

    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    mapping(bytes32 => Channel) public channels;
    mapping(bytes32 => Withdrawal) public pendingWithdrawals;
    mapping(bytes32 => uint256) public refundNonce;
    mapping(address => mapping(address => Receiver)) public receivers;
    uint256 private collecting; // 1 while a collector runs: a deposit within a deposit would be counted twice

    event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
    event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
    event Deposited(bytes32 indexed channelId, address indexed payer, uint128 amount, uint128 newBalance);
    event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
    event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);
    event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);

    error InvalidConfig();
    error InvalidAmount();
    error InvalidSignature();
    error InvalidNonce();
    error NotAuthorized();
    error ClaimExceedsVoucher();
    error ClaimExceedsBalance();
    error DepositNotCollected();
    error EmptyBatch();
    error NoWithdrawal();
    error WithdrawalNotDue();
    error Reentered();
    error TransferFailed();

    /// Many calls of this contract in one, with the caller of them all.
    function multicall(bytes[] calldata data) external returns (bytes[] memory results) {
        results = new bytes[](data.length);
        for (uint256 i = 0; i < data.length; i++) {
            (bool ok, bytes memory answer) = address(this).delegatecall(data[i]);
            if (!ok) {
                assembly ("memory-safe") {
                    revert(add(answer, 0x20), mload(answer))
                }
            }
            results[i] = answer;
        }
    }

    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
    {
        if (collecting != 0) revert Reentered();
        if (
            config.payer == address(0) || config.receiver == address(0) || config.receiverAuthorizer == address(0)
                || config.token == address(0) || config.withdrawDelay < MIN_WITHDRAW_DELAY
                || config.withdrawDelay > MAX_WITHDRAW_DELAY
        ) revert InvalidConfig();
        if (amount == 0) revert InvalidAmount();
        bytes32 id = getChannelId(config);
        Channel storage channel = channels[id];
        uint128 before = channel.balance;
        uint128 balance = before + amount; // checked
        uint256 had = IERC20(config.token).balanceOf(address(this));
        collecting = 1;
        ICollector(collector).collect(config.payer, config.token, amount, id, collectorData);
        collecting = 0;
        if (IERC20(config.token).balanceOf(address(this)) != had + amount) revert DepositNotCollected();
        channel.balance = balance;
        if (before == 0 && channel.totalClaimed == 0) emit ChannelCreated(id, config);
        emit Deposited(id, config.payer, amount, balance);
    }

    /// Claims for channels of which the caller is receiver or receiverAuthorizer.
    function claim(VoucherClaim[] calldata voucherClaims) external {
        for (uint256 i = 0; i < voucherClaims.length; i++) {
            ChannelConfig calldata config = voucherClaims[i].voucher.channel;
            if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAuthorized();
            _claim(voucherClaims[i], getChannelId(config));
        }
    }

    /// Claims for channels that share a receiverAuthorizer, who signed them all.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature) external {
        uint256 n = voucherClaims.length;
        if (n == 0) revert EmptyBatch();
        address authorizer = voucherClaims[0].voucher.channel.receiverAuthorizer;
        bytes32[] memory ids = new bytes32[](n);
        bytes32[] memory entries = new bytes32[](n);
        for (uint256 i = 0; i < n; i++) {
            ChannelConfig calldata config = voucherClaims[i].voucher.channel;
            if (config.receiverAuthorizer != authorizer) revert NotAuthorized();
            ids[i] = getChannelId(config);
            entries[i] = _entry(ids[i], voucherClaims[i]);
        }
        if (!_signed(authorizer, _batchDigest(entries), authorizerSignature)) revert InvalidSignature();
        for (uint256 i = 0; i < n; i++) {
            _claim(voucherClaims[i], ids[i]);
        }
    }

    /// Sends the receiver everything that was claimed and not sent yet.
    function settle(address receiver, address token) external {
        Receiver storage r = receivers[receiver][token];
        uint128 amount = r.totalClaimed - r.totalSettled;
        if (amount == 0) return;
        r.totalSettled = r.totalClaimed;
        emit Settled(receiver, token, msg.sender, amount);
        _send(token, receiver, amount);
    }

    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external {
        _onlyPayer(config);
        bytes32 id = getChannelId(config);
        Channel storage channel = channels[id];
        if (amount == 0 || amount > channel.balance - channel.totalClaimed) revert InvalidAmount();
        if (pendingWithdrawals[id].initiatedAt != 0) revert WithdrawalNotDue();
        pendingWithdrawals[id] = Withdrawal(amount, uint40(block.timestamp));
        emit WithdrawInitiated(id, amount, uint40(block.timestamp) + config.withdrawDelay);
    }

    function finalizeWithdraw(ChannelConfig calldata config) external {
        _onlyPayer(config);
        bytes32 id = getChannelId(config);
        Withdrawal memory w = pendingWithdrawals[id];
        if (w.initiatedAt == 0) revert NoWithdrawal();
        if (block.timestamp < uint256(w.initiatedAt) + config.withdrawDelay) revert WithdrawalNotDue();
        delete pendingWithdrawals[id];
        uint128 amount = _take(id, config, w.amount);
        emit WithdrawFinalized(id, msg.sender, amount);
        if (amount > 0) _send(config.token, config.payer, amount);
    }

    /// Gives back what is not claimed, up to amount.
    function refund(ChannelConfig calldata config, uint128 amount) external {
        if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) revert NotAuthorized();
        _refund(getChannelId(config), config, amount);
    }

    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external {
        bytes32 id = getChannelId(config);
        if (nonce != refundNonce[id]) revert InvalidNonce();
        if (!_signed(config.receiverAuthorizer, getRefundDigest(id, nonce, amount), receiverAuthorizerSignature)) {
            revert InvalidSignature();
        }
        _refund(id, config, amount);
    }

    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"),
                keccak256("1"),
                block.chainid,
                address(this)
            )
        );
    }

    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _digest(
            keccak256(
                abi.encode(
                    CHANNEL_CONFIG_TYPEHASH,
                    config.payer,
                    config.payerAuthorizer,
                    config.receiver,
                    config.receiverAuthorizer,
                    config.token,
                    config.withdrawDelay,
                    config.salt
                )
            )
        );
    }

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, maxClaimableAmount)));
    }

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) external view returns (bytes32) {
        bytes32[] memory entries = new bytes32[](voucherClaims.length);
        for (uint256 i = 0; i < entries.length; i++) {
            entries[i] = _entry(getChannelId(voucherClaims[i].voucher.channel), voucherClaims[i]);
        }
        return _batchDigest(entries);
    }

    /// One claim whose batch somebody answers for. A total that is claimed
    /// already changes nothing, so that a batch sent twice is no failure.
    function _claim(VoucherClaim calldata c, bytes32 id) private {
        ChannelConfig calldata config = c.voucher.channel;
        Channel storage channel = channels[id];
        uint128 claimed = channel.totalClaimed;
        if (c.totalClaimed > c.voucher.maxClaimableAmount) revert ClaimExceedsVoucher();
        if (c.totalClaimed <= claimed) return;
        if (c.totalClaimed > channel.balance) revert ClaimExceedsBalance();
        bytes32 digest = getVoucherDigest(id, c.voucher.maxClaimableAmount);
        bool valid = config.payerAuthorizer != address(0)
            ? _recover(digest, c.signature) == config.payerAuthorizer
            : _signed(config.payer, digest, c.signature);
        if (!valid) revert InvalidSignature();
        uint128 amount = c.totalClaimed - claimed;
        channel.totalClaimed = c.totalClaimed;
        receivers[config.receiver][config.token].totalClaimed += amount;
        emit Claimed(id, msg.sender, amount, c.totalClaimed);
    }

    /// The nonce moves first: a refund that was signed for the same nonce is
    /// void, also where there is nothing to give back.
    function _refund(bytes32 id, ChannelConfig calldata config, uint128 amount) private {
        if (amount == 0) revert InvalidAmount();
        refundNonce[id]++;
        uint128 given = _take(id, config, amount);
        if (given == 0) return;
        Withdrawal storage w = pendingWithdrawals[id];
        if (w.initiatedAt != 0) {
            if (given >= w.amount) delete pendingWithdrawals[id];
            else w.amount -= given;
        }
        emit Refunded(id, msg.sender, given);
        _send(config.token, config.payer, given);
    }

    /// Takes up to amount out of what is the payer's.
    function _take(bytes32 id, ChannelConfig calldata config, uint128 amount) private returns (uint128) {
        Channel storage channel = channels[id];
        uint128 left = channel.balance - channel.totalClaimed;
        if (amount > left) amount = left;
        channel.balance -= amount;
        if (amount > 0 && channel.balance == 0) emit ChannelClosed(id, config);
        return amount;
    }

    function _onlyPayer(ChannelConfig calldata config) private view {
        if (msg.sender != config.payer && msg.sender != config.payerAuthorizer) revert NotAuthorized();
    }

    function _entry(bytes32 id, VoucherClaim calldata c) private pure returns (bytes32) {
        return keccak256(abi.encode(CLAIM_ENTRY_TYPEHASH, id, c.voucher.maxClaimableAmount, c.totalClaimed));
    }

    function _batchDigest(bytes32[] memory entries) private view returns (bytes32) {
        return _digest(keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(abi.encodePacked(entries)))));
    }

    function _digest(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), structHash));
    }

    /// Whether who, an account or a contract, signed digest.
    function _signed(address who, bytes32 digest, bytes calldata signature) private view returns (bool) {
        if (who.code.length == 0) return _recover(digest, signature) == who;
        (bool ok, bytes memory answer) = who.staticcall(abi.encodeCall(IERC1271.isValidSignature, (digest, signature)));
        return ok && answer.length >= 32 && abi.decode(answer, (bytes32)) == bytes32(IERC1271.isValidSignature.selector);
    }

    function _recover(bytes32 digest, bytes calldata signature) private pure returns (address signer) {
        if (signature.length != 65) revert InvalidSignature();
        bytes32 s = bytes32(signature[32:64]);
        uint8 v = uint8(signature[64]);
        if (uint256(s) > HALF_ORDER || (v != 27 && v != 28)) revert InvalidSignature();
        signer = ecrecover(digest, v, bytes32(signature[0:32]), s);
        if (signer == address(0)) revert InvalidSignature();
    }

    /// Tokens that answer nothing are taken at their word, as USDT must be.
    function _send(address token, address to, uint256 amount) private {
        (bool ok, bytes memory answer) = token.call(abi.encodeCall(IERC20.transfer, (to, amount)));
        if (!ok || (answer.length != 0 && !abi.decode(answer, (bool)))) revert TransferFailed();
    }
}

/// ERC3009Collector brings a deposit by EIP-3009. The authorization is made out
/// to it, and its nonce names the channel, so that nobody can put the money
/// into another one.
contract ERC3009Collector {
    /// Where Channels stands on every chain that has it: a constant, so that the
    /// code is the same whether a transaction or a genesis block put it there.
    address public constant channels = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;

    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata data) external {
        require(msg.sender == channels, "only the channels collect");
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(data, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IERC3009(token).receiveWithAuthorization(payer, address(this), amount, validAfter, validBefore, nonce, signature);
        require(IERC20(token).transfer(msg.sender, amount), "the token kept the money");
    }
}
