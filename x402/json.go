package x402

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// Object is a JSON object whose members keep their order and their bytes.
type Object []Member

// Member is one member of an Object; Value is valid JSON.
type Member struct {
	Name  string
	Value []byte
}

// JSON is o as it stands on the wire.
func (o Object) JSON() []byte {
	b := builder{b: make([]byte, 0, 256)}
	b.open()
	b.members(o)
	b.close()
	return b.b
}

// Find is the value of the member called name, or nil.
func (o Object) Find(name string) []byte {
	for i := range o {
		if o[i].Name == name {
			return o[i].Value
		}
	}
	return nil
}

// syntaxError says where JSON stops being acceptable, and why.
type syntaxError struct {
	at  int
	why string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("%s at byte %d", e.why, e.at) }

// checkJSON accepts exactly one JSON value (RFC 8259) in valid UTF-8, at most
// MaxDepth deep, with white space around it. Everything below relies on it
// having run first.
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return &syntaxError{0, "invalid UTF-8"}
	}
	i, err := scanValue(data, space(data, 0), MaxDepth)
	if err != nil {
		return err
	}
	if i = space(data, i); i != len(data) {
		return &syntaxError{i, "unexpected data after the value"}
	}
	return nil
}

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// scanValue is the index after the value that starts at i. levels is how many
// more may be opened.
func scanValue(b []byte, i, levels int) (int, error) {
	if i >= len(b) {
		return i, &syntaxError{i, "unexpected end"}
	}
	switch c := b[i]; {
	case c == '"':
		return scanString(b, i)
	case c == '{' || c == '[':
		if levels == 0 {
			return i, &syntaxError{i, "nested too deeply"}
		}
		return scanNested(b, i, levels-1)
	case c == '-' || '0' <= c && c <= '9':
		return scanNumber(b, i)
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if bytes.HasPrefix(b[i:], []byte(word)) {
			return i + len(word), nil
		}
	}
	return i, &syntaxError{i, "unexpected character"}
}

// scanNested scans an object or an array.
func scanNested(b []byte, i, levels int) (int, error) {
	object := b[i] == '{'
	end := b[i] + 2 // } and ] both stand two after their opening
	i = space(b, i+1)
	if i < len(b) && b[i] == end {
		return i + 1, nil
	}
	for {
		var err error
		if object {
			if i >= len(b) || b[i] != '"' {
				return i, &syntaxError{i, "a member's name is missing"}
			}
			if i, err = scanString(b, i); err != nil {
				return i, err
			}
			if i = space(b, i); i >= len(b) || b[i] != ':' {
				return i, &syntaxError{i, "a colon is missing"}
			}
			i = space(b, i+1)
		}
		if i, err = scanValue(b, i, levels); err != nil {
			return i, err
		}
		i = space(b, i)
		switch {
		case i < len(b) && b[i] == end:
			return i + 1, nil
		case i < len(b) && b[i] == ',':
			i = space(b, i+1)
		default:
			return i, &syntaxError{i, "a comma or the closing bracket is missing"}
		}
	}
}

func scanString(b []byte, i int) (int, error) {
	for i++; i+8 <= len(b) && plain(binary.LittleEndian.Uint64(b[i:])); {
		i += 8
	}
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1, nil
		case c < 0x20:
			return i, &syntaxError{i, "a control character in a string"}
		case c == '\\':
			i++
			if i >= len(b) {
				break
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					i++
					if i >= len(b) || !isHex(b[i]) {
						return i, &syntaxError{i, "a bad escape in a string"}
					}
				}
			default:
				return i, &syntaxError{i, "a bad escape in a string"}
			}
		}
	}
	return i, &syntaxError{i, "unexpected end"}
}

// plain reports whether none of eight characters ends a string, begins an
// escape, or is one of those that have to be escaped. It may be wrong about
// those with a sign bit, which then are looked at one by one.
func plain(eight uint64) bool {
	const ones, signs = 0x0101010101010101, 0x8080808080808080
	quote, slash := eight^(ones*'"'), eight^(ones*'\\')
	return (eight|(eight-ones*0x20)|(quote-ones)|(slash-ones))&signs == 0
}

func scanNumber(b []byte, i int) (int, error) {
	digits := func() bool {
		from := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		return i > from
	}
	bad := func() (int, error) { return i, &syntaxError{i, "a bad number"} }
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return bad()
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return bad()
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return bad()
		}
	}
	return i, nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// object takes a checked JSON object apart. It refuses repeated members:
// which of the two counts is where parsers differ, and attackers know it.
func object(raw []byte) (Object, error) {
	if kind(raw) != '{' {
		return nil, fmt.Errorf("is not an object")
	}
	o := make(Object, 0, 8)
	i := space(raw, 1)
	for raw[i] != '}' {
		end, _ := scanString(raw, i)
		name := memberName(raw[i:end])
		i = space(raw, space(raw, end)+1)
		end, _ = scanValue(raw, i, MaxDepth)
		if o.Find(name) != nil {
			return nil, fmt.Errorf("has the member %q twice", clip(name))
		}
		if len(o) == maxMembers {
			return nil, fmt.Errorf("has more than %d members", maxMembers)
		}
		o = append(o, Member{name, raw[i:end:end]})
		if i = space(raw, end); raw[i] == ',' {
			i = space(raw, i+1)
		}
	}
	return o, nil
}

// memberName is the content of a checked JSON string that names a member. The
// names that every payment has are not made anew.
func memberName(raw []byte) string {
	if s, ok := memberNames[string(raw[1:len(raw)-1])]; ok {
		return s
	}
	return text(raw)
}

var memberNames = func() map[string]string {
	m := map[string]string{}
	for _, s := range []string{"x402Version", "accepted", "payload", "resource", "extensions", "scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra",
		"name", "version", "quote", "receiverAuthorizer", "withdrawDelay", "minDeposit", "type", "channelConfig", "voucher", "payer", "payerAuthorizer", "receiver", "token", "salt",
		"channelId", "maxClaimableAmount", "signature", "authorization", "from", "to", "value", "validAfter", "validBefore", "nonce", "url", "description", "mimeType"} {
		m[s] = s
	}
	return m
}()

// array takes a checked JSON array apart.
func array(raw []byte) ([][]byte, error) {
	if kind(raw) != '[' {
		return nil, fmt.Errorf("is not an array")
	}
	var a [][]byte
	i := space(raw, 1)
	for raw[i] != ']' {
		end, _ := scanValue(raw, i, MaxDepth)
		a = append(a, raw[i:end:end])
		if i = space(raw, end); raw[i] == ',' {
			i = space(raw, i+1)
		}
	}
	return a, nil
}

// kind is the first character of a JSON value: { [ " t f n, a digit or -.
func kind(raw []byte) byte {
	if len(raw) == 0 {
		return 0
	}
	return raw[0]
}

// text is the content of a checked JSON string.
func text(raw []byte) string {
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return string(inner)
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// whole is a checked JSON number as an integer; ok is false if it is none, or
// beyond the 2^53 that JavaScript counts exactly.
func whole(raw []byte) (n int64, ok bool) {
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f < -1<<53 || f > 1<<53 || f != float64(int64(f)) {
		return 0, false
	}
	return int64(f), true
}

// equalJSON compares values as JavaScript does after parsing them: the order
// of members does not matter, and numbers are doubles.
func equalJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// containsJSON reports whether got has everything that want has: objects may
// have more members, at any depth; everything else is equal. The SDK's
// objectContainsSubset.
func containsJSON(want, got []byte) bool {
	if bytes.Equal(want, got) {
		return true
	}
	var x, y any
	return json.Unmarshal(want, &x) == nil && json.Unmarshal(got, &y) == nil && contains(x, y)
}

func contains(want, got any) bool {
	w, ok := want.(map[string]any)
	if !ok {
		return reflect.DeepEqual(want, got)
	}
	g, ok := got.(map[string]any)
	if !ok {
		return false
	}
	for name, v := range w {
		have, ok := g[name]
		if !ok || !contains(v, have) {
			return false
		}
	}
	return true
}

// clip shortens what a stranger wrote for a message.
func clip(s string) string {
	if len(s) <= 40 {
		return s
	}
	return s[:40] + "…"
}
