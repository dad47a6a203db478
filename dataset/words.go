package dataset

import (
	"sort"
	"unicode/utf8"
	"unsafe"
)

// words cuts text into folded words, as SQLite's FTS5 does with its unicode61
// tokenizer, and hands each to f with where it ends; a separator is there, or
// the end of text. The slice is valid until f returns; buf is room for it.
func words(text, buf []byte, f func(word []byte, end int)) []byte {
	buf = buf[:0]
	in := false // a word has begun, though it may still be empty
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
				buf, in = append(buf, c), true
				continue
			case c >= 'A' && c <= 'Z':
				buf, in = append(buf, c+'a'-'A'), true
				continue
			}
			if in {
				f(buf, i-1)
				buf, in = buf[:0], false
			}
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		i += n
		switch r, letter := fold(r, in); {
		case letter && r != 0:
			buf, in = utf8.AppendRune(buf, r), true
		case !letter && in:
			f(buf, i-n)
			buf, in = buf[:0], false
		}
	}
	if in {
		f(buf, len(text))
	}
	return buf
}

// fold gives the letter that r counts as, 0 if it is dropped, and whether it is
// part of a word at all. inside says that a word has begun before it.
func fold(r rune, inside bool) (rune, bool) {
	if n := sort.Search(len(separators), func(i int) bool { return separators[i][1] >= r }); n < len(separators) && r >= separators[n][0] {
		return 0, false
	}
	if r >= marks[0] && r <= marks[len(marks)-1] {
		for _, m := range marks {
			if r == m {
				return 0, inside
			}
		}
	}
	if n := sort.Search(len(folds), func(i int) bool { return folds[i].hi >= r }); n < len(folds) && r >= folds[n].lo && (r-folds[n].lo)%folds[n].step == 0 {
		return r + folds[n].delta, true
	}
	return r, true
}

// searchWords adds the words of a q to list; doubled ones count once. Their
// text is in room, and buf is room for one.
func searchWords(list []Word, room, buf []byte, q string) (_ []Word, text, folded []byte) {
	buf = words(unsafe.Slice(unsafe.StringData(q), len(q)), buf, func(w []byte, end int) {
		star := end < len(q) && q[end] == '*'
		for _, have := range list {
			if have.Text == str(w) && have.Prefix == star {
				return
			}
		}
		from := len(room)
		room = append(room, w...)
		list = append(list, Word{str(room[from:]), star})
	})
	return list, room, buf
}
