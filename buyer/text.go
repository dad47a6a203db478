package buyer

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"unicode"

	"github.com/402claw/clawr"
)

// clean makes a stranger's text fit for a terminal and a log: printable
// characters on one line, at most limit of them. Control characters (which can
// rewrite a terminal) and those that turn the direction of text (which can
// make one address look like another) are gone.
func clean(s string, limit int) string {
	var b strings.Builder
	n, gap := 0, false
	for _, r := range s {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			gap = n > 0
			continue
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			continue
		}
		if gap {
			b.WriteByte(' ')
			n++
		}
		if gap = false; n >= limit {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// quote makes s one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Dollars is a as people write prices: "$5.00", "$0.002".
func Dollars(a clawr.Amount) string {
	s := a.String()
	switch i := strings.IndexByte(s, '.'); {
	case i < 0:
		s += ".00"
	case len(s)-i == 2:
		s += "0"
	}
	return "$" + s
}

// newID is prefix and 128 random bits in hex.
func newID(prefix string) string {
	var b [16]byte
	rand.Read(b[:]) // never fails: it ends the process instead
	return prefix + hex.EncodeToString(b[:])
}
