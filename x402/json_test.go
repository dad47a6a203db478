package x402

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzJSON holds the scanner to encoding/json: both accept the same texts,
// except that ours wants valid UTF-8 and bounded depth, and what ours takes
// apart is what the other one reads.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{}`, `[]`, ` {"a" : [1, -0.5e+7 ,"\u00e9\n\"", true,false,null]} `, `{"a":{"b":{}}}`, `01`, `1.`, `-`, `1e`, `"\x"`, `"\u12g4"`,
		`"`, `"\`, `{"a":1,}`, `{"a"}`, `{a:1}`, `[1 2]`, `nul`, "\"\x01\"", "\"\xff\"", `{} {}`, ``, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, "\ufeff{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := checkJSON(data)
		want := json.Valid(data) && utf8.Valid(data) && depth(data) <= MaxDepth
		if (err == nil) != want {
			t.Fatalf("checkJSON(%q) = %v, encoding/json says valid = %v", data, err, want)
		}
		if err != nil {
			return
		}
		data = data[space(data, 0):]
		if o, err := object(data); err == nil {
			var m map[string]json.RawMessage
			if err := json.Unmarshal(data, &m); err != nil || len(m) != len(o) {
				t.Fatalf("object(%q) has %d members, encoding/json %d, %v", data, len(o), len(m), err)
			}
			for _, x := range o {
				if !bytes.Equal(x.Value, m[x.Name]) {
					t.Fatalf("object(%q)[%q] = %q, encoding/json %q", data, x.Name, x.Value, m[x.Name])
				}
			}
		}
		if a, err := array(data); err == nil {
			var m []json.RawMessage
			if err := json.Unmarshal(data, &m); err != nil || len(m) != len(a) {
				t.Fatalf("array(%q) has %d entries, encoding/json %d, %v", data, len(a), len(m), err)
			}
		}
		if !equalJSON(data, data) || !containsJSON(data, data) {
			t.Fatalf("%q is not equal to itself", data)
		}
	})
}

// depth is how deep brackets nest outside of strings.
func depth(data []byte) (deepest int) {
	level, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '['):
			level++
			deepest = max(deepest, level)
		case !quoted && (c == '}' || c == ']'):
			level--
		}
	}
	return deepest
}

func TestJSONBounds(t *testing.T) {
	deep := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	if err := checkJSON(deep(MaxDepth)); err != nil {
		t.Errorf("%d levels: %v", MaxDepth, err)
	}
	if err := checkJSON(deep(MaxDepth + 1)); err == nil {
		t.Errorf("%d levels were accepted, the bound is %d", MaxDepth+1, MaxDepth)
	}
	wide := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			b.WriteString(`,"` + strings.Repeat("k", i+1) + `":1`)
		}
		return []byte("{" + b.String()[1:] + "}")
	}
	if _, err := object(wide(maxMembers)); err != nil {
		t.Errorf("%d members: %v", maxMembers, err)
	}
	if _, err := object(wide(maxMembers + 1)); err == nil {
		t.Errorf("%d members were accepted, the bound is %d", maxMembers+1, maxMembers)
	}
}

func TestContainsJSON(t *testing.T) {
	for _, c := range []struct {
		want, got string
		in, equal bool
	}{
		{`{"a":1,"b":[1,2]}`, `{"b":[1,2],"a":1.0}`, true, true},
		{`{"a":{"b":1}}`, `{"a":{"b":1,"c":2},"d":3}`, true, false},
		{`{"a":1}`, `{}`, false, false},
		{`{"a":null}`, `{}`, false, false},
		{`{"a":[1,2]}`, `{"a":[1,2,3]}`, false, false},
		{`{"a":[{"b":1}]}`, `{"a":[{"b":1,"c":2}]}`, false, false},
		{`{"a":"1"}`, `{"a":1}`, false, false},
		{`1`, `1e0`, true, true},
		{`{}`, `[]`, false, false},
		{`{}`, `{"__proto__":{}}`, true, false},
	} {
		if got := containsJSON([]byte(c.want), []byte(c.got)); got != c.in {
			t.Errorf("%s in %s: %v, want %v", c.want, c.got, got, c.in)
		}
		if got := equalJSON([]byte(c.want), []byte(c.got)); got != c.equal {
			t.Errorf("%s equals %s: %v, want %v", c.want, c.got, got, c.equal)
		}
	}
}

func TestStringsSurvive(t *testing.T) {
	for _, s := range []string{"", "plain", "a\"b\\c/d", "\x00\x1f\n\t\r", "é世🎉", "\u2028<script>", "bad\xffutf8\xc3"} {
		b := appendString(nil, s)
		var std string
		if err := json.Unmarshal(b, &std); err != nil {
			t.Fatalf("appendString(%q) = %s: %v", s, b, err)
		}
		if err := checkJSON(b); err != nil {
			t.Errorf("appendString(%q) = %s: %v", s, b, err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); text(b) != want || std != want {
			t.Errorf("%q came back as %q, encoding/json reads %q", s, text(b), std)
		}
	}
}

// Strings are looked at eight characters at a time: none that ends or spoils
// one may hide among seven others.
func TestEveryCharacterOfAStringIsSeen(t *testing.T) {
	for c := range 0x80 {
		for at := range 20 {
			s := []byte(`"aaaaaaaaaaaaaaaaaaaa"`)
			s[at+1] = byte(c)
			if got, want := checkJSON(s) == nil, json.Valid(s); got != want {
				t.Errorf("%q: accepted %v, want %v", s, got, want)
			}
		}
	}
}
