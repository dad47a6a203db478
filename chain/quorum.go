package chain

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common"
)

// Quorum is several providers of one chain, so many of whom must say the same
// that no minority can make it believe anything: 2 of 3, 3 of 5. With one
// provider that one is believed; with two both must agree. What says that money
// moved, or never will, goes through it: blocks, receipts, logs, and the state
// of authorizations. A provider that is down, lags behind, or lies is outvoted,
// and waited for by nobody once the others agree.
//
// The providers must be independent of each other: two URLs of one company are
// one provider.
type Quorum struct {
	Network string
	members []*member
	// floor is the highest block that was agreed to be finalized. Whoever has
	// not seen it lags behind, and is not asked how things stand.
	floor atomic.Int64
}

// member is one provider. It is dialled when it is first needed, so that one
// that is down when clawr starts is there when it comes back.
type member struct {
	url string

	mu     sync.Mutex
	client *Client
	err    error
	tried  time.Time
}

// redialAfter is how long a provider that could not be reached is left alone.
const redialAfter = 5 * time.Second

// DialQuorum connects to the providers at the URLs. Enough of them to agree
// must be there, and all that are there must be on network.
func DialQuorum(ctx context.Context, network string, urls []string) (*Quorum, error) {
	q := &Quorum{Network: network}
	for i, u := range urls {
		if slices.Contains(urls[:i], u) {
			return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "rpc-url", Message: "one provider is given twice: it cannot agree with itself",
				Fix: "give the URLs of three independent providers, or of one"}
		}
		q.members = append(q.members, &member{url: u})
	}
	if len(urls) == 0 {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "rpc-url", Message: "there is no RPC URL", Fix: "give one such as https://sepolia.base.org"}
	}
	errs := make([]error, len(urls))
	var wg sync.WaitGroup
	for i, m := range q.members {
		wg.Go(func() { _, errs[i] = m.dial(ctx, network) })
	}
	wg.Wait()
	there := 0
	for _, err := range errs {
		if err == nil {
			there++
		} else if clawr.CodeOf(err) != clawr.CodeUnreachable {
			return nil, err
		}
	}
	if there < q.Need() {
		return nil, errors.Join(errs...)
	}
	return q, nil
}

// Alone is a quorum of one provider.
func Alone(c *Client) *Quorum {
	return &Quorum{Network: c.Network(), members: []*member{{url: c.url, client: c}}}
}

// Size is the number of providers, and Need how many of them must agree.
func (q *Quorum) Size() int { return len(q.members) }

// Need is how many providers must agree: more than half.
func (q *Quorum) Need() int { return len(q.members)/2 + 1 }

// Close ends the connections.
func (q *Quorum) Close() {
	for _, m := range q.members {
		m.mu.Lock()
		if m.client != nil {
			m.client.Close()
		}
		m.mu.Unlock()
	}
}

func (m *member) dial(ctx context.Context, network string) (*Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client != nil {
		return m.client, nil
	}
	if m.err != nil && time.Since(m.tried) < redialAfter {
		return nil, m.err
	}
	c, err := Dial(ctx, m.url)
	if err == nil {
		if err = c.Expect(network); err != nil {
			c.Close()
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			m.err, m.tried = err, time.Now()
		}
		return nil, err
	}
	m.client, m.err = c, nil
	return c, nil
}

// said is what one provider answered.
type said[T any] struct {
	value T
	err   error
}

// ask asks all providers at once, and calls enough with the answers that are
// there, in order of arrival, after each of them: until it is true, or all have
// answered. The others' questions are given up; nobody is left behind.
func ask[T any](ctx context.Context, q *Quorum, question func(context.Context, *Client) (T, error), enough func([]said[T]) bool) []said[T] {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan said[T], len(q.members))
	var wg sync.WaitGroup
	for _, m := range q.members {
		wg.Go(func() {
			var a said[T]
			c, err := m.dial(ctx, q.Network)
			if err != nil {
				a.err = err
			} else {
				a.value, a.err = question(ctx, c)
			}
			answers <- a
		})
	}
	var all []said[T]
	for range q.members {
		if all = append(all, <-answers); enough(all) {
			break
		}
	}
	cancel()
	wg.Wait()
	return all
}

// agree is what enough providers answer alike, by the key of their answers.
func agree[T any](ctx context.Context, q *Quorum, what string, question func(context.Context, *Client) (T, error), key func(T) string) (T, error) {
	var agreed *T
	all := ask(ctx, q, question, func(all []said[T]) bool {
		last := all[len(all)-1]
		if last.err != nil {
			return false
		}
		votes := 0
		for i := range all {
			if all[i].err == nil && key(all[i].value) == key(last.value) {
				votes++
			}
		}
		if votes >= q.Need() {
			agreed = &last.value
		}
		return agreed != nil
	})
	if agreed != nil {
		return *agreed, nil
	}
	var none T
	return none, disagreement(q, what, all)
}

// disagreement is the error of providers that do not agree, or of the one.
func disagreement[T any](q *Quorum, what string, all []said[T]) error {
	var errs []error
	for _, a := range all {
		if a.err != nil {
			errs = append(errs, a.err)
		}
	}
	if len(q.members) == 1 && len(errs) == 1 {
		return errs[0]
	}
	return &clawr.Error{Code: clawr.CodeUnreachable, Param: "rpc-url", Err: errors.Join(errs...),
		Message: fmt.Sprintf("%d of %d providers of %s answered, and no %d of them agree on %s", len(all)-len(errs), len(q.members), q.Network, q.Need(), what),
		Fix:     "see whether the --rpc-url of each is right, up, and on the chain's head"}
}

func blockKey(b Block) string {
	return fmt.Sprint(b.Number, b.Hash, b.Parent, b.Time.Unix())
}

// Head is the newest block that enough providers have.
func (q *Quorum) Head(ctx context.Context) (Block, error) {
	return q.highest(ctx, "the newest block", (*Client).Head)
}

// Finalized is the newest block that enough providers call finalized.
func (q *Quorum) Finalized(ctx context.Context) (Block, error) {
	b, err := q.highest(ctx, "the finalized block", (*Client).Finalized)
	if err != nil {
		return b, err
	}
	for {
		floor := q.floor.Load()
		if b.Number <= floor || q.floor.CompareAndSwap(floor, b.Number) {
			return b, nil
		}
	}
}

// patience is how long those are waited for who may know more than the others.
const patience = time.Second

// patiently asks until those who must agree have answered, and then, unless
// that is enough, for a little longer.
func patiently[T any](ctx context.Context, q *Quorum, question func(context.Context, *Client) (T, error), enough func([]said[T]) bool) []said[T] {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var impatient *time.Timer
	all := ask(ctx, q, question, func(all []said[T]) bool {
		good := 0
		for _, a := range all {
			if a.err == nil {
				good++
			}
		}
		if good < q.Need() {
			return false
		}
		if impatient == nil && !enough(all) {
			impatient = time.AfterFunc(patience, cancel)
			return false
		}
		return enough(all)
	})
	if impatient != nil {
		impatient.Stop()
	}
	return all
}

// highest is the newest block that so many providers have reached as must
// agree, as they all know it.
func (q *Quorum) highest(ctx context.Context, what string, question func(*Client, context.Context) (Block, error)) (Block, error) {
	if len(q.members) == 1 {
		c, err := q.members[0].dial(ctx, q.Network)
		if err != nil {
			return Block{}, err
		}
		return question(c, ctx)
	}
	all := patiently(ctx, q, func(ctx context.Context, c *Client) (Block, error) { return question(c, ctx) }, func(all []said[Block]) bool {
		good := blocksOf(all)
		return blockKey(good[0]) == blockKey(good[q.Need()-1])
	})
	good := blocksOf(all)
	if len(good) < q.Need() {
		return Block{}, disagreement(q, what, all)
	}
	if b := good[q.Need()-1]; blockKey(good[0]) == blockKey(b) {
		return b, nil
	}
	b, err := q.Canonical(ctx, good[q.Need()-1].Number)
	if err == nil && b == nil {
		err = disagreement(q, what, all)
	}
	if err != nil {
		return Block{}, err
	}
	return *b, nil
}

// blocksOf are the blocks that were answered, the newest first.
func blocksOf(all []said[Block]) []Block {
	var good []Block
	for _, a := range all {
		if a.err == nil {
			good = append(good, a.value)
		}
	}
	slices.SortStableFunc(good, func(a, b Block) int {
		return cmp.Or(cmp.Compare(b.Number, a.Number), strings.Compare(blockKey(a), blockKey(b)))
	})
	return good
}

// Canonical is the canonical block with a number, nil if there is none yet.
func (q *Quorum) Canonical(ctx context.Context, number int64) (*Block, error) {
	return agree(ctx, q, fmt.Sprintf("block %d", number), func(ctx context.Context, c *Client) (*Block, error) { return c.Canonical(ctx, number) },
		func(b *Block) string {
			if b == nil {
				return ""
			}
			return blockKey(*b)
		})
}

// Receipt is what became of a transaction, nil while it is in no block.
func (q *Quorum) Receipt(ctx context.Context, hash common.Hash) (*Receipt, error) {
	return agree(ctx, q, "the receipt of "+hash.Hex(), func(ctx context.Context, c *Client) (*Receipt, error) { return c.Receipt(ctx, hash) },
		func(r *Receipt) string {
			if r == nil {
				return ""
			}
			sum := sha256.New()
			for _, l := range r.Logs {
				fmt.Fprintln(sum, l.Index, l.Address, l.Topics, len(l.Data), l.Data)
			}
			return fmt.Sprint(r.Block, r.Hash, r.Time.Unix(), r.OK, r.From, sum.Sum(nil))
		})
}

// AuthorizationState reports whether the payer's nonce was used or cancelled,
// by those who have seen the newest finalized block.
func (q *Quorum) AuthorizationState(ctx context.Context, asset, payer common.Address, nonce common.Hash) (bool, error) {
	return agree(ctx, q, "the authorization "+nonce.Hex(), func(ctx context.Context, c *Client) (bool, error) {
		return c.authorizationSince(ctx, asset, payer, nonce, q.floor.Load())
	}, func(used bool) string { return fmt.Sprint(used) })
}

// AuthorizationStateAt is AuthorizationState as of a canonical block.
func (q *Quorum) AuthorizationStateAt(ctx context.Context, asset, payer common.Address, nonce, block common.Hash) (bool, error) {
	return agree(ctx, q, "the authorization "+nonce.Hex()+" at block "+block.Hex(), func(ctx context.Context, c *Client) (bool, error) {
		return c.AuthorizationStateAt(ctx, asset, payer, nonce, block)
	}, func(used bool) string { return fmt.Sprint(used) })
}

// Asset is Client.Asset, as enough providers read it: with other decimals a
// price would be another.
func (q *Quorum) Asset(ctx context.Context, address common.Address) (clawr.Asset, error) {
	type token struct {
		clawr.Asset
		no error // it is no token
	}
	a, err := agree(ctx, q, "the asset", func(ctx context.Context, c *Client) (token, error) {
		a, err := c.Asset(ctx, address)
		if clawr.CodeOf(err) == clawr.CodeNoContract {
			return token{no: err}, nil
		}
		return token{Asset: a}, err
	}, func(a token) string { return fmt.Sprint(a.Asset, a.no != nil) })
	if err != nil {
		return clawr.Asset{}, err
	}
	return a.Asset, a.no
}

// Nonce is the next nonce of an account, after what the pools of enough
// providers hold.
func (q *Quorum) Nonce(ctx context.Context, who common.Address) (uint64, error) {
	return q.least(ctx, "the signer's nonce", func(ctx context.Context, c *Client) (uint64, error) { return c.PendingNonceAt(ctx, who) })
}

// FinalNonce is the number of transactions of an account that enough providers
// have in finalized blocks.
func (q *Quorum) FinalNonce(ctx context.Context, who common.Address) (uint64, error) {
	return q.least(ctx, "the signer's finalized nonce", func(ctx context.Context, c *Client) (uint64, error) { return c.FinalNonceAt(ctx, who) })
}

// least is the highest number that enough providers have reached.
func (q *Quorum) least(ctx context.Context, what string, question func(context.Context, *Client) (uint64, error)) (uint64, error) {
	all := patiently(ctx, q, question, func(all []said[uint64]) bool { return len(all) == len(q.members) })
	var good []uint64
	for _, a := range all {
		if a.err == nil {
			good = append(good, a.value)
		}
	}
	if len(good) < q.Need() {
		return 0, disagreement(q, what, all)
	}
	slices.Sort(good)
	return good[len(good)-q.Need()], nil
}

// Submit hands a transaction to every provider and waits up to the given time
// for a receipt that enough of them give. None of their answers to it is the
// last word; the error is that of those who refuse it, if enough do.
func (q *Quorum) Submit(ctx context.Context, tx Tx, wait time.Duration) (*Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var sending sync.WaitGroup
	defer sending.Wait()
	refused := make(chan error, 1)
	sending.Go(func() {
		all := ask(ctx, q, func(ctx context.Context, c *Client) (Outcome, error) { return c.Broadcast(ctx, tx.Raw) }, func([]said[Outcome]) bool { return false })
		var errs []error
		for _, a := range all {
			if a.err != nil && a.value == Refused {
				errs = append(errs, a.err)
			}
		}
		if len(errs) >= q.Need() {
			refused <- errs[0]
		}
	})
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		if r, err := q.Receipt(ctx, tx.Hash); r != nil && err == nil {
			cancel() // those who have not answered yet will hear of it
			return r, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case err := <-refused:
			return nil, err
		case <-time.After(pause):
		}
	}
}
