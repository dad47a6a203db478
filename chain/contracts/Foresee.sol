// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// Foresee is never deployed. It is the code of an eth_call that creates a
/// contract: it carries many EIP-3009 transfers out, one after the other, each
/// with so much gas and no more, and reverts with what it saw. So one round
/// trip foretells a whole batch, with what each transfer leaves to the next,
/// on any node and without a contract on its chain.
///
/// Behind the code stand the transfers, 181 bytes each: asset, payer, payee
/// (20), amount, validAfter, validBefore (8), nonce (32), v (1), r, s (32);
/// and a last word: their number (16) and the gas of each (16).
///
/// The answer has five words for each. The first, from its low end: flags (1
/// went through, 2 nonce used before, 4 the payer has code, 8 no EIP-3009
/// token, 16 balance too small, 32 not run for want of gas), 8 bits; the gas
/// that it took, 32 bits; the length of the token's words, 8 bits. The others
/// are the token's words, 128 bytes at most.
contract Foresee {
    constructor() {
        assembly {
            let end := sub(codesize(), 32)
            codecopy(0, end, 32)
            let n := shr(128, mload(0))
            let limit := and(mload(0), 0xffffffffffffffffffffffffffffffff)
            let items := 0x200
            codecopy(items, sub(end, mul(n, 181)), mul(n, 181))
            let out := add(items, mul(n, 192))
            for { let i := 0 } lt(i, n) { i := add(i, 1) } {
                let p := add(items, mul(i, 181))
                let w := add(out, mul(i, 160))
                let asset := shr(96, mload(p))
                let payer := shr(96, mload(add(p, 20)))
                let amount := shr(192, mload(add(p, 60)))
                let nonce := mload(add(p, 84))
                let flags := 0
                if extcodesize(payer) { flags := 4 }

                mstore(0x80, shl(224, 0xe94a0102)) // authorizationState(address,bytes32)
                mstore(0x84, payer)
                mstore(0xa4, nonce)
                mstore(0, 0)
                let ok := staticcall(limit, asset, 0x80, 0x44, 0, 32)
                switch and(ok, gt(returndatasize(), 31))
                case 0 { flags := or(flags, 8) }
                default { if mload(0) { flags := or(flags, 2) } }

                mstore(0x80, shl(224, 0x70a08231)) // balanceOf(address)
                mstore(0x84, payer)
                ok := staticcall(limit, asset, 0x80, 0x24, 0, 32)
                if and(and(ok, gt(returndatasize(), 31)), lt(mload(0), amount)) { flags := or(flags, 16) }

                // transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)
                mstore(0x80, shl(224, 0xe3ee160e))
                mstore(0x84, payer)
                mstore(0xa4, shr(96, mload(add(p, 40))))
                mstore(0xc4, amount)
                mstore(0xe4, shr(192, mload(add(p, 68))))
                mstore(0x104, shr(192, mload(add(p, 76))))
                mstore(0x124, nonce)
                mstore(0x144, shr(248, mload(add(p, 116))))
                mstore(0x164, mload(add(p, 117)))
                mstore(0x184, mload(add(p, 149)))
                // The call gets at most 63/64 of what is left.
                switch lt(gas(), add(add(limit, div(limit, 32)), 10000))
                case 1 { mstore(w, or(flags, 32)) }
                default {
                    let spent := gas()
                    ok := call(limit, asset, 0, 0x80, 292, 0, 0)
                    spent := sub(spent, gas())
                    let len := 0
                    switch ok
                    case 0 {
                        len := returndatasize()
                        if gt(len, 128) { len := 128 }
                        returndatacopy(add(w, 32), 0, len)
                    }
                    default { flags := or(flags, 1) }
                    mstore(w, or(or(flags, shl(8, spent)), shl(40, len)))
                }
            }
            revert(out, mul(n, 160))
        }
    }
}
