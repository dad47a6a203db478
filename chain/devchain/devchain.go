// Package devchain is a whole Ethereum chain inside the process: go-ethereum's
// EVM, transaction pool and block store with one block producer of our own, a
// test USDC that understands EIP-3009, a Multicall3, a faucet, and the usual
// JSON-RPC on loopback, so that any client can use it.
//
// # The clock
//
// A block's time is the wall clock's, and never runs ahead of it: blocks of
// the same second carry the same time, as they do on several rollups, and are
// ordered by number. Ethereum's own rule, that each block is at least a second
// later than its parent, would put a chain that mines a block per transaction
// a second into the future with each of them, and authorizations expire by
// chain time. So transactions are mined at once, at any rate, with a drift of
// zero; those that arrive while a block is being made share the next one. If
// the wall clock is set back, block times stand still until it catches up.
//
// An idle chain mines nothing. A request that finds the head older than
// StaleAfter makes an empty block first, so that nobody judges a time window
// by an hour-old clock.
//
// # What is kept
//
// With a directory every block and its state is handed to the operating system
// before anyone can see it: a killed process continues the same chain.
package devchain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/rawdb"
	"github.com/ethereum/go-ethereum/core/txpool"
	"github.com/ethereum/go-ethereum/core/txpool/legacypool"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/ethdb"
	"github.com/ethereum/go-ethereum/rpc"
)

// DefaultChainID is the chain id of a development chain that is told nothing else.
const DefaultChainID = 31337

// StaleAfter is the age of the head from which a request makes an empty block.
const StaleAfter = 12 * time.Second

// Options say what chain to open. The zero value is a chain in memory with id
// 31337 that mines at once and listens on a free loopback port.
type Options struct {
	// ChainID is 31337 if zero. A directory remembers its own and refuses another.
	ChainID int64
	// BlockTime is the time between blocks; zero mines as soon as there is a transaction.
	BlockTime time.Duration
	// Dir keeps the chain and its keys; empty keeps them in memory.
	Dir string
	// LikeBaseSepolia gives the chain id 84532 and puts the token at the address
	// of Base Sepolia's USDC, which the official client knows without being told.
	// Signatures made there are valid on the real testnet: use only keys made
	// for the directory. Such a chain listens on loopback alone.
	LikeBaseSepolia bool
	// Listen is the address of the JSON-RPC server, 127.0.0.1:0 if empty.
	Listen string
	// AllowRemote permits a Listen address that is not loopback.
	AllowRemote bool
	// Now is the wall clock, time.Now if nil.
	Now func() time.Time
	// Log hears about failures to make a block; slog.Default() if nil.
	Log *slog.Logger
}

// Chain is an open development chain. Its methods may be called from many goroutines.
type Chain struct {
	opt    Options
	spec   spec
	db     ethdb.Database
	bc     *core.BlockChain
	pool   *txpool.TxPool
	oracle *oracle
	keys   *keyring
	faucet *chain.Key

	rpc      *rpc.Server
	http     *http.Server
	listener net.Listener

	ready   chan struct{} // one slot: there is something to mine
	mining  sync.Mutex    // one block at a time
	syncing sync.Mutex    // one caller of pool.Sync at a time
	closed  bool          // under mining: no more blocks
	grants  sync.Mutex    // one grant at a time: the faucet's account nonces
	heads   broadcast
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open opens or creates the chain that opt describes and starts to serve it.
// It is an error with code wrong_chain if the directory holds another chain,
// data_dir_locked if another process has it open, and usage if opt asks for
// something impossible. Close ends it.
func Open(opt Options) (*Chain, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return nil, err
	}
	keys := &keyring{dir: opt.Dir}
	faucet, err := keys.key("faucet")
	if err != nil {
		return nil, err
	}
	c := &Chain{opt: opt, keys: keys, faucet: faucet, ready: make(chan struct{}, 1)}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Chain) open() (err error) {
	if c.db, err = openDatabase(c.opt.Dir); err != nil {
		return err
	}
	genesis, err := c.genesis()
	if err != nil {
		return err
	}
	if c.bc, err = core.NewBlockChain(c.db, genesis, newEngine(), &core.BlockChainConfig{
		TrieCleanLimit: 8,
		StateScheme:    "hash",
		ArchiveMode:    true, // every block's state is written with the block: nothing to lose in a crash
		NoPrefetch:     true,
	}); err != nil {
		return fmt.Errorf("open the development chain: %w", err)
	}
	cfg := legacypool.DefaultConfig
	cfg.NoLocals, cfg.Journal = true, ""
	legacy := legacypool.New(cfg, c.bc)
	if c.pool, err = txpool.New(cfg.PriceLimit, c.bc, []txpool.SubPool{legacy}); err != nil {
		return fmt.Errorf("open the transaction pool: %w", err)
	}
	c.oracle = newOracle(c)
	if c.listener, err = net.Listen("tcp", c.opt.Listen); err != nil {
		return &clawr.Error{Code: clawr.CodeUsage, Message: "cannot listen on " + c.opt.Listen, Param: "listen",
			Fix: "choose a free address, such as 127.0.0.1:0", Err: err}
	}
	if err := c.serveRPC(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	arrivals := make(chan core.NewTxsEvent, 64)
	sub := c.pool.SubscribeTransactions(arrivals, true)
	c.running.Go(func() { defer sub.Unsubscribe(); c.watch(ctx, arrivals) })
	c.running.Go(func() { c.produce(ctx) })
	c.running.Go(func() { c.http.Serve(c.listener) })
	return nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.LikeBaseSepolia {
		if o.ChainID != 0 && o.ChainID != baseSepoliaID {
			return o, &clawr.Error{Code: clawr.CodeUsage, Message: fmt.Sprintf("a chain like Base Sepolia has id %d, not %d", baseSepoliaID, o.ChainID),
				Param: "chain-id", Fix: "leave out one of --chain-id and --like-base-sepolia"}
		}
		o.ChainID = baseSepoliaID
	}
	if o.ChainID == 0 {
		o.ChainID = DefaultChainID
	}
	if o.ChainID < 0 || o.BlockTime < 0 || o.BlockTime > 0 && o.BlockTime < time.Millisecond {
		return o, &clawr.Error{Code: clawr.CodeUsage, Message: "chain id and block time must not be negative, and a block takes at least 1ms",
			Fix: "leave them out for a chain 31337 that mines at once"}
	}
	if !isLoopback(o.Listen) && (!o.AllowRemote || o.LikeBaseSepolia) {
		e := &clawr.Error{Code: clawr.CodeUsage, Message: o.Listen + " is not a loopback address, and anyone who reaches a development chain can take its money",
			Param: "listen", Fix: "listen on 127.0.0.1"}
		if o.LikeBaseSepolia {
			e.Message = o.Listen + " is not a loopback address, and signatures made on a chain like Base Sepolia are valid on the real one"
		}
		return o, e
	}
	return o, nil
}

// Close stops the server and the block producer and closes the store.
// Transactions that are not in a block are forgotten. It may be called twice.
func (c *Chain) Close() error {
	if c.http != nil {
		c.http.Close()
	} else if c.listener != nil {
		c.listener.Close()
	}
	if c.stop != nil {
		c.stop()
	}
	c.heads.close()
	c.running.Wait()
	if c.rpc != nil {
		c.rpc.Stop()
	}
	// A request that is still running finds the chain closed. The store ends the
	// process on a failed write, so nothing may be writing when it goes.
	c.mining.Lock()
	defer c.mining.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var err error
	if c.pool != nil {
		err = c.pool.Close()
	}
	if c.bc != nil {
		c.bc.Stop()
	}
	if c.db != nil {
		err = errors.Join(err, c.db.Close())
	}
	return err
}

// Serve keeps the chain open until ctx ends, then closes it.
func (c *Chain) Serve(ctx context.Context) error {
	<-ctx.Done()
	return c.Close()
}

// URL is where the JSON-RPC is served, such as http://127.0.0.1:40817.
func (c *Chain) URL() string { return "http://" + c.listener.Addr().String() }

// ChainID is the number in the chain's CAIP-2 name.
func (c *Chain) ChainID() int64 { return c.spec.ChainID }

// Network is the chain's CAIP-2 name, such as eip155:31337.
func (c *Chain) Network() string { return fmt.Sprintf("eip155:%d", c.spec.ChainID) }

// Asset is the test USDC.
func (c *Chain) Asset() clawr.Asset {
	return clawr.Asset{Network: c.Network(), Address: lower(c.spec.Token), Name: "USDC", Version: "2", Decimals: 6}
}

// Key is the key called name that belongs to this chain's directory, made at
// random the first time it is asked for. Names are lower-case letters.
func (c *Chain) Key(name string) (*chain.Key, error) { return c.keys.key(name) }

// Client is a client of the chain that does not pass through the network.
func (c *Chain) Client(ctx context.Context) (*chain.Client, error) {
	return chain.New(ctx, rpc.DialInProc(c.rpc), c.URL())
}

// Head is the newest block: its number, and its time in whole seconds.
func (c *Chain) Head() (number int64, at time.Time) {
	h := c.bc.CurrentBlock()
	return h.Number.Int64(), time.Unix(int64(h.Time), 0).UTC()
}

// transaction finds a transaction that is in a block, nil if it is in none.
func (c *Chain) transaction(hash common.Hash) (*rawdb.LegacyTxLookupEntry, *types.Transaction) {
	at, tx := c.bc.GetCanonicalTransaction(hash)
	if tx == nil || !c.visible(at.BlockIndex) {
		return nil, nil
	}
	return at, tx
}

// visible reports whether a block is part of the chain yet. The store has a
// block a moment before it is the head: who saw it then would ask for its
// state and be given its parent's.
func (c *Chain) visible(number uint64) bool { return number <= c.bc.CurrentBlock().Number.Uint64() }

// receipt is what became of a transaction, nil while it is in no block.
func (c *Chain) receipt(hash common.Hash) (*types.Receipt, *types.Transaction, error) {
	at, tx := c.transaction(hash)
	if tx == nil {
		return nil, nil, nil
	}
	r, err := c.bc.GetCanonicalReceipt(tx, at.BlockHash, at.BlockIndex, at.Index)
	return r, tx, err
}

// broadcast wakes everyone who waits for a new head.
type broadcast struct {
	mu     sync.Mutex
	next   chan struct{}
	closed bool
}

// wait gives a channel that is closed at the next head, or when the chain closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
		if b.closed {
			close(b.next)
		}
	}
	return b.next
}

func (b *broadcast) notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil && !b.closed {
		close(b.next)
		b.next = nil
	}
}

func (b *broadcast) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

func (b *broadcast) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil && !b.closed {
		close(b.next)
	}
	b.closed = true
}
