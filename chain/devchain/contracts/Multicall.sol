// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// Multicall makes many calls in one. It answers the functions of Multicall3
/// that clients and facilitators use, so that the development chain can have
/// it at that contract's canonical address.
contract Multicall {
    struct Call {
        address target;
        bytes callData;
    }

    struct Call3 {
        address target;
        bool allowFailure;
        bytes callData;
    }

    struct Call3Value {
        address target;
        bool allowFailure;
        uint256 value;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    function aggregate(Call[] calldata calls)
        external
        payable
        returns (uint256 blockNumber, bytes[] memory returnData)
    {
        blockNumber = block.number;
        returnData = new bytes[](calls.length);
        for (uint256 i = 0; i < calls.length; i++) {
            Result memory r = _call(calls[i].target, 0, calls[i].callData, false);
            returnData[i] = r.returnData;
        }
    }

    function tryAggregate(bool requireSuccess, Call[] calldata calls)
        public
        payable
        returns (Result[] memory returnData)
    {
        returnData = new Result[](calls.length);
        for (uint256 i = 0; i < calls.length; i++) {
            returnData[i] = _call(calls[i].target, 0, calls[i].callData, !requireSuccess);
        }
    }

    function tryBlockAndAggregate(bool requireSuccess, Call[] calldata calls)
        public
        payable
        returns (uint256 blockNumber, bytes32 blockHash, Result[] memory returnData)
    {
        blockNumber = block.number;
        blockHash = blockhash(block.number);
        returnData = tryAggregate(requireSuccess, calls);
    }

    function blockAndAggregate(Call[] calldata calls)
        external
        payable
        returns (uint256 blockNumber, bytes32 blockHash, Result[] memory returnData)
    {
        return tryBlockAndAggregate(true, calls);
    }

    /// Settlement pays for every step of this loop, so that it takes no more of
    /// them than the contract that it stands for: the callee's words are copied
    /// once, and the calldata only into the call.
    function aggregate3(Call3[] calldata calls) external payable returns (Result[] memory returnData) {
        uint256 n = calls.length;
        assembly ("memory-safe") {
            returnData := mload(0x40)
            mstore(returnData, n)
            mstore(0x40, add(add(returnData, 0x20), shl(5, n)))
        }
        bool failed;
        assembly ("memory-safe") {
            let r := mload(0x40) // success, where the words are, their length, the words
            for { let i := 0 } lt(i, n) { i := add(i, 1) } {
                let call3 := add(calls.offset, calldataload(add(calls.offset, shl(5, i))))
                let data := add(call3, calldataload(add(call3, 0x40)))
                let length := calldataload(data)
                calldatacopy(r, add(data, 0x20), length)
                let ok := call(gas(), calldataload(call3), 0, r, length, 0, 0)
                if iszero(or(ok, calldataload(add(call3, 0x20)))) {
                    failed := 1
                    break
                }
                mstore(r, ok)
                mstore(add(r, 0x20), add(r, 0x40))
                mstore(add(r, 0x40), returndatasize())
                returndatacopy(add(r, 0x60), 0, returndatasize())
                mstore(add(add(returnData, 0x20), shl(5, i)), r)
                r := add(add(r, 0x60), and(add(returndatasize(), 0x1f), not(0x1f)))
            }
            mstore(0x40, r)
        }
        require(!failed, "Multicall3: call failed");
    }

    function aggregate3Value(Call3Value[] calldata calls) external payable returns (Result[] memory returnData) {
        returnData = new Result[](calls.length);
        uint256 spent;
        for (uint256 i = 0; i < calls.length; i++) {
            spent += calls[i].value;
            returnData[i] = _call(calls[i].target, calls[i].value, calls[i].callData, calls[i].allowFailure);
        }
        require(msg.value == spent, "Multicall3: value mismatch");
    }

    function getBlockHash(uint256 blockNumber) external view returns (bytes32) {
        return blockhash(blockNumber);
    }

    function getBlockNumber() external view returns (uint256) {
        return block.number;
    }

    function getCurrentBlockCoinbase() external view returns (address) {
        return block.coinbase;
    }

    function getCurrentBlockDifficulty() external view returns (uint256) {
        return block.prevrandao;
    }

    function getCurrentBlockGasLimit() external view returns (uint256) {
        return block.gaslimit;
    }

    function getCurrentBlockTimestamp() external view returns (uint256) {
        return block.timestamp;
    }

    function getEthBalance(address account) external view returns (uint256) {
        return account.balance;
    }

    function getLastBlockHash() external view returns (bytes32) {
        return blockhash(block.number - 1);
    }

    function getBasefee() external view returns (uint256) {
        return block.basefee;
    }

    function getChainId() external view returns (uint256) {
        return block.chainid;
    }

    function _call(address target, uint256 value, bytes calldata data, bool allowFailure)
        private
        returns (Result memory r)
    {
        (r.success, r.returnData) = target.call{value: value}(data);
        require(r.success || allowFailure, "Multicall3: call failed");
    }
}
