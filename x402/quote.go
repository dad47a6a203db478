package x402

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"sync"
	"time"
)

// A quote is what a challenge promises: this price, for this version of this
// tenant, until then. Nothing is stored when it is given; its MAC is the
// memory. Clients of version 2 echo it in accepted.extra.quote.
//
// It is also what fetches the stored answer after the payment is public on the
// chain, so it is random, never logged, stored only hashed, and never sent to
// a facilitator.
type Quote struct {
	Version int64     // the tenant version whose price and data are promised
	Units   int64     // the price in the token's atomic units
	Expires time.Time // whole seconds
}

// The layout of a quote, before base64 (url-safe, unpadded):
//
//	0  key id   4   which key made the MAC
//	4  version  8
//	12 units    8
//	20 expires  8   unix seconds
//	28 random  16
//	44 mac     16   HMAC-SHA256 over the above and the tenant's id, its first half
const (
	quoteBody = 44
	quoteSize = 60
	// QuoteLen is the length of a quote.
	QuoteLen = quoteSize / 3 * 4
)

// minSecret is the shortest secret that keys a quote, in bytes.
const minSecret = 32

// Quotes makes and checks quotes. It is safe for concurrent use. Keys rotate
// by building new Quotes with the new secret first and the old ones behind it,
// until the last quote of theirs has expired.
type Quotes struct {
	keys []*quoteKey
}

type quoteKey struct {
	id   [4]byte
	macs sync.Pool // of *quoteMAC: keying one costs as much as using it
}

// NewQuotes makes quotes with the first secret and honours those of all. The
// secrets are random, at least 32 bytes, shared by all nodes and kept across
// restarts.
func NewQuotes(secrets ...[]byte) (*Quotes, error) {
	q := &Quotes{}
	for _, s := range secrets {
		if len(s) < minSecret {
			return nil, errors.New("a quote secret has fewer than 32 bytes")
		}
		secret := append([]byte(nil), s...)
		k := &quoteKey{macs: sync.Pool{New: func() any { return &quoteMAC{Hash: hmac.New(sha256.New, secret)} }}}
		// The id is derived, so that it cannot go astray, and names the
		// layout, so that a later one is told apart.
		id := k.mac([]byte("clawr quote 1"), "")
		copy(k.id[:], id[:])
		for _, other := range q.keys {
			if other.id == k.id {
				return nil, errors.New("two quote secrets are the same")
			}
		}
		q.keys = append(q.keys, k)
	}
	if len(q.keys) == 0 {
		return nil, errors.New("there is no quote secret")
	}
	return q, nil
}

// Append appends a new quote for tenant to dst: QuoteLen bytes that need no
// escaping anywhere.
func (q *Quotes) Append(dst []byte, tenant string, v Quote) []byte {
	var b [quoteSize]byte
	k := q.keys[0]
	copy(b[:4], k.id[:])
	binary.BigEndian.PutUint64(b[4:], uint64(v.Version))
	binary.BigEndian.PutUint64(b[12:], uint64(v.Units))
	binary.BigEndian.PutUint64(b[20:], uint64(v.Expires.Unix()))
	_, _ = rand.Read(b[28:quoteBody]) // it never fails, by its contract
	mac := k.mac(b[:quoteBody], tenant)
	copy(b[quoteBody:], mac[:])
	return base64.RawURLEncoding.AppendEncode(dst, b[:])
}

// Mint is Append as a string.
func (q *Quotes) Mint(tenant string, v Quote) string {
	var b [QuoteLen]byte
	return string(q.Append(b[:0], tenant, v))
}

// Open checks a quote that was given for tenant. The errors are the reasons
// quote_malformed, quote_foreign (made with none of our keys, for another
// tenant, or altered) and quote_expired; with the last the Quote is returned
// too.
func (q *Quotes) Open(tenant, s string, now time.Time) (Quote, error) {
	var b [quoteSize]byte
	if len(s) != QuoteLen {
		return Quote{}, refuse(ReasonQuoteMalformed, "the quote has %d characters, not %d", len(s), QuoteLen)
	}
	for i := range len(s) { // Decode would skip line ends, and then be short
		if s[i] < 0x20 {
			return Quote{}, refuse(ReasonQuoteMalformed, "the quote is not base64")
		}
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], []byte(s)); err != nil {
		return Quote{}, refuse(ReasonQuoteMalformed, "the quote is not base64")
	}
	for _, k := range q.keys {
		if [4]byte(b[:4]) != k.id {
			continue
		}
		mac := k.mac(b[:quoteBody], tenant)
		if !hmac.Equal(mac[:], b[quoteBody:]) {
			break
		}
		v := Quote{Version: int64(binary.BigEndian.Uint64(b[4:])), Units: int64(binary.BigEndian.Uint64(b[12:])),
			Expires: time.Unix(int64(binary.BigEndian.Uint64(b[20:])), 0)}
		if !now.Before(v.Expires) {
			return v, refuse(ReasonQuoteExpired, "the quote ended %s ago", now.Sub(v.Expires).Round(time.Second))
		}
		return v, nil
	}
	return Quote{}, refuse(ReasonQuoteForeign, "the quote was not made here for this API")
}

// quoteMAC is what one MAC needs, in one piece so that nothing of it is
// allocated twice.
type quoteMAC struct {
	hash.Hash
	in  []byte
	sum [sha256.Size]byte
}

// mac is the first half of the MAC of body and tenant.
func (k *quoteKey) mac(body []byte, tenant string) (out [quoteSize - quoteBody]byte) {
	m := k.macs.Get().(*quoteMAC)
	m.in = append(append(m.in[:0], body...), tenant...)
	m.Reset()
	m.Write(m.in)
	copy(out[:], m.Sum(m.sum[:0]))
	k.macs.Put(m)
	return out
}
