package x402

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

func secret(c byte) []byte { return bytes.Repeat([]byte{c}, 32) }

func quotes(t testing.TB, secrets ...[]byte) *Quotes {
	t.Helper()
	q, err := NewQuotes(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestQuoteComesBack(t *testing.T) {
	q := quotes(t, secret(1))
	rapid.Check(t, func(t *rapid.T) {
		v := Quote{Version: rapid.Int64().Draw(t, "version"), Units: rapid.Int64().Draw(t, "units"),
			Expires: time.Unix(rapid.Int64Range(1, 1<<40).Draw(t, "expires"), 0)}
		tenant := rapid.String().Draw(t, "tenant")
		s := q.Mint(tenant, v)
		got, err := q.Open(tenant, s, v.Expires.Add(-time.Second))
		if err != nil || got != v {
			t.Fatalf("%+v came back as %+v, %v", v, got, err)
		}
		if _, err := q.Open(tenant+"x", s, v.Expires.Add(-time.Second)); clawr.CodeOf(err) != ReasonQuoteForeign {
			t.Fatalf("another tenant's quote: %v", err)
		}
	})
}

func TestQuoteRefusals(t *testing.T) {
	q := quotes(t, secret(1))
	now := time.Unix(1_800_000_000, 500)
	v := Quote{Version: 3, Units: 1000, Expires: time.Unix(1_800_000_060, 0)}
	good := q.Mint("tnt_1", v)
	if len(good) != QuoteLen {
		t.Fatalf("a quote has %d bytes, QuoteLen says %d", len(good), QuoteLen)
	}
	if again := q.Mint("tnt_1", v); again == good {
		t.Error("two quotes of the same terms are equal: they would fetch each other's answers")
	}
	for _, c := range []struct {
		name, s string
		now     time.Time
		want    clawr.Code
	}{
		{"empty", "", now, ReasonQuoteMalformed},
		{"short", good[:QuoteLen-1], now, ReasonQuoteMalformed},
		{"long", good + "A", now, ReasonQuoteMalformed},
		{"not base64", "!" + good[1:], now, ReasonQuoteMalformed},
		{"line end", "\n" + good[1:], now, ReasonQuoteMalformed},
		{"standard alphabet", strings.Repeat("+/", QuoteLen/2), now, ReasonQuoteMalformed},
		{"unknown key", strings.Repeat("A", QuoteLen), now, ReasonQuoteForeign},
		{"last moment", good, time.Unix(1_800_000_059, 999_999_999), ""},
		{"expired", good, v.Expires, ReasonQuoteExpired},
		{"long expired", good, v.Expires.Add(1e6 * time.Hour), ReasonQuoteExpired},
	} {
		if _, err := q.Open("tnt_1", c.s, c.now); err == nil && c.want != "" || err != nil && clawr.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if v, err := q.Open("tnt_1", base64.RawURLEncoding.EncodeToString(raw), now); clawr.CodeOf(err) != ReasonQuoteForeign || v != (Quote{}) {
				t.Fatalf("with bit %d of byte %d changed: %+v, %v", bit, i, v, err)
			}
			raw[i] ^= 1 << bit
		}
	}
}

func TestQuoteKeysRotate(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	v := Quote{Version: 1, Units: 1, Expires: now.Add(time.Minute)}
	old, both, next := quotes(t, secret(1)), quotes(t, secret(2), secret(1)), quotes(t, secret(2))
	if _, err := both.Open("t", old.Mint("t", v), now); err != nil {
		t.Errorf("a quote of the old key, during rotation: %v", err)
	}
	if _, err := next.Open("t", both.Mint("t", v), now); err != nil {
		t.Errorf("the new key does not make the quotes during rotation: %v", err)
	}
	if _, err := next.Open("t", old.Mint("t", v), now); clawr.CodeOf(err) != ReasonQuoteForeign {
		t.Errorf("a quote of a key that is gone: %v", err)
	}
	for _, bad := range [][][]byte{{}, {secret(1)[:31]}, {secret(1), secret(1)}} {
		if _, err := NewQuotes(bad...); err == nil {
			t.Errorf("secrets of %d keys were accepted", len(bad))
		}
	}
}

func FuzzQuote(f *testing.F) {
	q := quotes(f, secret(1))
	v := Quote{Version: 1, Units: 1000, Expires: time.Unix(1<<40, 0)}
	good := q.Mint("t", v)
	f.Add(good)
	f.Add("")
	f.Add(strings.Repeat("A", QuoteLen))
	f.Fuzz(func(t *testing.T, s string) {
		// The seed is from another run: only a quote of this one may open.
		if got, err := q.Open("t", s, time.Unix(1_800_000_000, 0)); err == nil && got != v {
			t.Fatalf("%q was opened as %+v", s, got)
		}
	})
}

func BenchmarkQuoteAppend(b *testing.B) {
	q := quotes(b, secret(1))
	v := Quote{Version: 3, Units: 1000, Expires: time.Unix(1_800_000_060, 0)}
	buf := make([]byte, 0, QuoteLen)
	b.ReportAllocs()
	for b.Loop() {
		buf = q.Append(buf[:0], "tnt_0123456789abcdef", v)
	}
}

func BenchmarkQuoteOpen(b *testing.B) {
	q := quotes(b, secret(1))
	v := Quote{Version: 3, Units: 1000, Expires: time.Unix(1_800_000_060, 0)}
	s, now := q.Mint("tnt_0123456789abcdef", v), time.Unix(1_800_000_000, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.Open("tnt_0123456789abcdef", s, now); err != nil {
			b.Fatal(err)
		}
	}
}
