package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/x402"
)

// dice are thrown by name: what one of them shows depends on the seed and on
// what it is thrown for, and never on who throws first.
type dice uint64

func (d dice) at(what ...any) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, uint64(d), what)
	return rand.New(rand.NewPCG(uint64(d), h.Sum64()))
}

// one reports whether something happens that does so in p of 100 cases.
func one(r *rand.Rand, p int) bool { return r.IntN(100) < p }

// The fake chain's pace.
const (
	blockTime = 2 * time.Second
	finality  = 10 // blocks
	deepest   = 5  // reorganisation
)

// usdc is the only token.
var usdc = clawr.Asset{Network: "eip155:84532", Address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", Name: "USDC", Version: "2", Decimals: 6}

// key names an authorization.
type key struct {
	payer common.Address
	nonce common.Hash
}

// tx carries one authorization out, or cancels it.
type tx struct {
	hash   string
	t      facilitator.Transfer
	cancel bool
}

func (x *tx) key() key { return key{x.t.Payer, x.t.Nonce} }

// block is one of the canonical chain, and the transactions in it that did
// something. Those that were reverted are left out of it.
type block struct {
	facilitator.Block
	txs []*tx
}

// chain is the fake: a token that knows EIP-3009, and nothing else.
type chain struct {
	dice dice
	mu   sync.Mutex
	list []block
	pool []*tx
	uses map[key]int64 // number of the block that used or cancelled it
	once map[key]bool  // was charged in some block, canonical or not
	poor map[common.Address]int64
	fork int
	halt int // blocks that do not come
	calm bool
}

func newChain(d dice) *chain {
	c := &chain{dice: d, uses: map[key]int64{}, once: map[key]bool{}, poor: map[common.Address]int64{}}
	for range finality + 1 {
		c.append(nil)
	}
	return c
}

// append makes a block at the moment, or two seconds after its parent if that
// is later: a reorganisation makes several at once.
func (c *chain) append(txs []*tx) {
	b := block{txs: txs}
	b.Time = time.Now().Truncate(time.Second).Add(-blockTime)
	if n := len(c.list); n > 0 {
		b.Number, b.Parent = c.list[n-1].Number+1, c.list[n-1].Hash
		if least := c.list[n-1].Time.Add(time.Second); b.Time.Before(least) {
			b.Time = least
		}
	}
	h := fnv.New128a()
	fmt.Fprint(h, uint64(c.dice), b.Number, c.fork, b.Parent)
	b.Hash = common.BytesToHash(h.Sum(nil))
	c.list = append(c.list, b)
}

// mine makes the next block, or does what chains do instead.
func (c *chain) mine() {
	c.mu.Lock()
	defer c.mu.Unlock()
	head := c.list[len(c.list)-1].Number
	r := c.dice.at("mine", head, c.fork)
	switch {
	case c.calm:
	case c.halt > 0:
		c.halt--
		return
	case one(r, 1):
		c.halt = r.IntN(40)
	case one(r, 6):
		c.reorganise(r, 1+r.IntN(deepest))
	}
	c.next(r)
}

// next takes from the pool what a block can carry.
func (c *chain) next(r *rand.Rand) {
	var in, left []*tx
	at := time.Now().Truncate(time.Second).Add(-blockTime)
	if parent := c.list[len(c.list)-1].Time; !at.After(parent) {
		at = parent.Add(time.Second)
	}
	for _, x := range c.pool {
		_, used := c.uses[x.key()]
		switch {
		case !c.calm && one(r, 25):
			left = append(left, x)
		case used: // reverted
		case x.cancel:
			in = append(in, x)
			c.uses[x.key()] = c.list[len(c.list)-1].Number + 1
		case at.Unix() >= x.t.ValidBefore || at.Unix() <= x.t.ValidAfter || c.drained(x):
		default:
			c.once[x.key()] = true
			in = append(in, x)
			c.uses[x.key()] = c.list[len(c.list)-1].Number + 1
		}
	}
	c.pool = left
	c.append(in)
}

// drained takes the money of an account that has little.
func (c *chain) drained(x *tx) bool {
	have, poor := c.poor[x.t.Payer]
	if poor && have < x.t.Amount {
		return true
	}
	if poor {
		c.poor[x.t.Payer] = have - x.t.Amount
	}
	return false
}

// reorganise gives the last blocks up. Most of what was in them is carried out
// again, in other blocks; some is forgotten.
func (c *chain) reorganise(r *rand.Rand, depth int) {
	c.fork++
	lost := c.list[len(c.list)-depth:]
	c.list = c.list[:len(c.list)-depth]
	for _, b := range lost {
		for _, x := range b.txs {
			delete(c.uses, x.key())
			if have, poor := c.poor[x.t.Payer]; poor && !x.cancel {
				c.poor[x.t.Payer] = have + x.t.Amount
			}
			if !one(r, 10) {
				c.pool = append(c.pool, x)
			}
		}
	}
	for range depth {
		c.next(r)
	}
}

// submit puts a transaction into the pool. Its hash names who made it.
func (c *chain) submit(t facilitator.Transfer, by string) string {
	return c.add(&tx{hash: hashOf("tx", by, t.Payer, t.Nonce), t: t})
}

func (c *chain) add(x *tx) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, y := range c.pool {
		if y.hash == x.hash {
			return x.hash
		}
	}
	c.pool = append(c.pool, x)
	return x.hash
}

func hashOf(what ...any) string {
	h := fnv.New128a()
	fmt.Fprint(h, what...)
	return strings.ToLower(common.BytesToHash(h.Sum(nil)).Hex())
}

// canonical is the transaction that used an authorization, seen from a height.
func (c *chain) canonical(k key, height int64) (*block, *tx, int) {
	number, ok := c.uses[k]
	if !ok || number > height {
		return nil, nil, 0
	}
	b := &c.list[number]
	for i, x := range b.txs {
		if x.key() == k {
			return b, x, i
		}
	}
	return nil, nil, 0
}

// paid reports whether k was charged, and for how much.
func (c *chain) paid(k key) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, x, _ := c.canonical(k, c.list[len(c.list)-1].Number)
	if x == nil || x.cancel {
		return 0, false
	}
	return x.t.Amount, true
}

// ever reports whether any block charged k, also one that was lost since.
func (c *chain) ever(k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.once[k]
}

// earned is what all transfers to payTo come to.
func (c *chain) earned(payTo common.Address) (sum int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.list {
		for _, x := range b.txs {
			if !x.cancel && x.t.PayTo == payTo {
				sum += x.t.Amount
			}
		}
	}
	return sum
}

// idle reports whether no transaction waits for a block.
func (c *chain) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pool) == 0
}

func (c *chain) quiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calm, c.halt = true, 0
}

// transferOf is what a payment asks the token to do.
func transferOf(p *x402.PaymentPayload) (facilitator.Transfer, error) {
	e, err := x402.ParseExact(p.Payload)
	if err != nil {
		return facilitator.Transfer{}, err
	}
	amount, _ := e.Value.Int64()
	after, _ := e.ValidAfter.Int64()
	before, _ := e.ValidBefore.Int64()
	return facilitator.Transfer{Asset: common.HexToAddress(usdc.Address), Payer: e.From, PayTo: e.To, Amount: amount, ValidAfter: after, ValidBefore: before,
		Nonce: e.Nonce, Signature: e.Signature}, nil
}
