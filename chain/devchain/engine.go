package devchain

import (
	"fmt"

	"github.com/ethereum/go-ethereum/consensus"
	"github.com/ethereum/go-ethereum/consensus/beacon"
	"github.com/ethereum/go-ethereum/consensus/ethash"
	"github.com/ethereum/go-ethereum/consensus/misc/eip1559"
	"github.com/ethereum/go-ethereum/core/types"
)

// engine is the consensus of one producer: go-ethereum's rules for proof of
// stake, except that a block may have the same time as its parent.
type engine struct{ *beacon.Beacon }

func newEngine() *engine { return &engine{beacon.New(ethash.NewFaker())} }

// VerifyHeader implements consensus.Engine.
func (e *engine) VerifyHeader(chain consensus.ChainHeaderReader, h *types.Header) error {
	parent := chain.GetHeader(h.ParentHash, h.Number.Uint64()-1)
	if parent == nil {
		return consensus.ErrUnknownAncestor
	}
	return e.verify(chain, h, parent)
}

// VerifyHeaders implements consensus.Engine. Batches are short here, so it
// finishes before it returns.
func (e *engine) VerifyHeaders(chain consensus.ChainHeaderReader, headers []*types.Header) (chan<- struct{}, <-chan error) {
	results := make(chan error, len(headers))
	for i, h := range headers {
		if i > 0 && headers[i-1].Hash() == h.ParentHash {
			results <- e.verify(chain, h, headers[i-1])
			continue
		}
		results <- e.VerifyHeader(chain, h)
	}
	return make(chan struct{}), results
}

func (e *engine) verify(chain consensus.ChainHeaderReader, h, parent *types.Header) error {
	switch {
	case h.Number.Uint64() != parent.Number.Uint64()+1:
		return consensus.ErrInvalidNumber
	case h.Time < parent.Time:
		return fmt.Errorf("block %d is older than its parent", h.Number)
	case h.Difficulty.Sign() != 0 || h.UncleHash != types.EmptyUncleHash:
		return fmt.Errorf("block %d is not of a proof-of-stake chain", h.Number)
	case h.GasUsed > h.GasLimit:
		return fmt.Errorf("block %d used %d gas of %d", h.Number, h.GasUsed, h.GasLimit)
	}
	return eip1559.VerifyEIP1559Header(chain.Config(), parent, h)
}
