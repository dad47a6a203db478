package dataset

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// words cuts text into folded words and hands each to f, with whether a star
// follows at once. The slice is valid until f returns.
func words(text []byte, buf []byte, f func(word []byte, star bool)) []byte {
	buf = buf[:0]
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
				buf = append(buf, c)
				continue
			case c >= 'A' && c <= 'Z':
				buf = append(buf, c+'a'-'A')
				continue
			}
			if len(buf) > 0 {
				f(buf, c == '*')
				buf = buf[:0]
			}
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		i += n
		if !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.Is(unicode.Co, r) && (len(buf) == 0 || !unicode.Is(unicode.Mn, r)) {
			if len(buf) > 0 {
				f(buf, false)
				buf = buf[:0]
			}
			continue
		}
		for _, d := range norm.NFD.String(string(unicode.ToLower(r))) {
			if !unicode.Is(unicode.Mn, d) {
				buf = utf8.AppendRune(buf, d)
			}
		}
	}
	if len(buf) > 0 {
		f(buf, false)
	}
	return buf
}

// searchWords adds the words of a q to list; doubled ones count once.
func searchWords(list []Word, q string) []Word {
	words([]byte(q), nil, func(w []byte, star bool) {
		for _, have := range list {
			if have.Text == string(w) && have.Prefix == star {
				return
			}
		}
		list = append(list, Word{string(w), star})
	})
	return list
}
