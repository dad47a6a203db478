package dataset

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/402claw/clawr"
)

// csvReader reads RFC 4180 strictly: a quote may only stand around a whole
// field, and what follows the closing one is a delimiter or the line's end.
// Lines end with LF, CRLF or CR. The fields it gives live until the next call.
type csvReader struct {
	src     io.Reader
	buf     []byte
	pos     int  // where the next record starts
	end     int  // of what is read
	eof     bool // src is at its end
	delim   byte
	bare    bool // a quote inside an unquoted field is itself (TSV)
	line    int  // of the record that next returned
	nextLn  int
	fields  [][]byte
	escaped []int     // fields with doubled quotes
	blank   bool      // the record is an empty line
	nul     bool      // a NUL byte was read, in whichever record
	marks   [4]uint64 // the bytes that end an unquoted field, eight of each
	quoted  bool      // the unfinished record ends inside a quoted field
	raw     []byte    // the bytes of the record
}

func newCSV(src io.Reader, delim byte, bare bool) *csvReader {
	c := &csvReader{src: src, buf: make([]byte, 512<<10), delim: delim, bare: bare, nextLn: 1}
	for i, mark := range []byte{delim, '\n', '\r', '"'} {
		if mark == '"' && bare {
			mark = delim
		}
		c.marks[i] = uint64(mark) * ones
	}
	return c
}

// next reads one record, or io.EOF.
func (c *csvReader) next() ([][]byte, error) {
	for {
		done, err := c.parse()
		if err != nil {
			return nil, err
		}
		if done {
			break
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	if len(c.fields) == 0 {
		return nil, io.EOF
	}
	for _, i := range c.escaped {
		c.fields[i] = unquote(c.fields[i])
	}
	return c.fields, nil
}

// fill reads more, keeping the unfinished record.
func (c *csvReader) fill() error {
	if c.pos > 0 {
		copy(c.buf, c.buf[c.pos:c.end])
		c.end -= c.pos
		c.pos = 0
	}
	if c.end == len(c.buf) {
		if c.end > 2*MaxRow {
			if c.quoted {
				return at(CodeCellTooLarge, c.nextLn, len(c.fields)+1, "", "a quoted cell that begins in this line does not end within 2 MB",
					"close its quote, or shorten the cell to at most 1 MB")
			}
			return rowTooLarge(c.nextLn, int64(c.end))
		}
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := io.ReadFull(c.src, c.buf[c.end:])
	c.nul = c.nul || bytes.IndexByte(c.buf[c.end:c.end+n], 0) >= 0
	c.end += n
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		c.eof = true
		return nil
	}
	return err
}

func rowTooLarge(line int, n int64) *clawr.Error {
	return at(CodeRowTooLarge, line, 0, "", fmt.Sprintf("the row has more than %d bytes (%d so far), the limit of a row", MaxRow, n),
		"shorten its cells, or check that the lines end with a line feed")
}

// parse looks for one whole record in the buffer; false asks for more bytes.
func (c *csvReader) parse() (bool, error) {
	b, i := c.buf[:c.end], c.pos
	c.fields, c.escaped, c.blank, c.quoted = c.fields[:0], c.escaped[:0], false, false
	if i == len(b) {
		return c.eof, nil
	}
	anyQuoted := false
	for {
		if i < len(b) && b[i] == '"' {
			anyQuoted, c.quoted = true, true
			j, esc, closed := closing(b, i+1, c.eof)
			if !closed {
				if !c.eof {
					return false, nil
				}
				line := c.nextLn + bytes.Count(b[c.pos:i], []byte{'\n'})
				return false, at(CodeUnclosedQuote, line, len(c.fields)+1, "", "the quote that opens this cell is never closed",
					`close it, and write a quote inside a quoted cell as ""`)
			}
			if esc {
				c.escaped = append(c.escaped, len(c.fields))
			}
			c.fields = append(c.fields, b[i+1:j])
			i, c.quoted = j+1, false
		} else {
			j := c.special(b, i)
			if j < len(b) && b[j] == '"' {
				return false, c.bareQuote(b, j, "a quote stands inside a cell that is not quoted")
			}
			c.fields = append(c.fields, b[i:j])
			i = j
		}
		if i == len(b) {
			if !c.eof {
				return false, nil
			}
			break
		}
		if b[i] == c.delim {
			i++
			continue
		}
		if b[i] == '\n' {
			i++
			break
		}
		if b[i] != '\r' {
			return false, c.bareQuote(b, i, "something follows the closing quote of a cell")
		}
		if i+1 == len(b) && !c.eof {
			return false, nil
		}
		i++
		if i < len(b) && b[i] == '\n' {
			i++
		}
		break
	}
	c.line = c.nextLn
	c.nextLn++
	if anyQuoted {
		c.nextLn += max(bytes.Count(b[c.pos:i], []byte{'\n'})-1, 0)
	}
	c.blank = !anyQuoted && len(c.fields) == 1 && len(c.fields[0]) == 0
	c.raw, c.pos = b[c.pos:i], i
	return true, nil
}

// special is the first place from i on of a byte that ends an unquoted field, or
// the end of b. It looks at eight bytes at a time: x-ones has the top bit of a byte
// that was zero, and below the first such byte of none that was not.
func (c *csvReader) special(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		delim, lf, cr, quote := x^c.marks[0], x^c.marks[1], x^c.marks[2], x^c.marks[3]
		if found := ((delim-ones)&^delim | (lf-ones)&^lf | (cr-ones)&^cr | (quote-ones)&^quote) & tops; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if x := uint64(b[i]) * ones; x == c.marks[0] || x == c.marks[1] || x == c.marks[2] || x == c.marks[3] {
			break
		}
	}
	return i
}

// The lowest and the highest bit of each of eight bytes.
const (
	ones = 0x0101010101010101
	tops = 0x8080808080808080
)

// closing finds the quote that closes a field, and whether it holds doubled ones.
func closing(b []byte, j int, eof bool) (end int, escaped, ok bool) {
	for {
		k := bytes.IndexByte(b[j:], '"')
		if k < 0 {
			return 0, false, false
		}
		j += k
		if j+1 == len(b) {
			return j, escaped, eof
		}
		if b[j+1] != '"' {
			return j, escaped, true
		}
		escaped = true
		j += 2
	}
}

func (c *csvReader) bareQuote(b []byte, i int, what string) error {
	line := c.nextLn + bytes.Count(b[c.pos:i], []byte{'\n'})
	return at(CodeBareQuote, line, max(len(c.fields), 1), "", what, `put quotes around the whole cell and write a quote inside it as ""`)
}

// unquote replaces "" by " in place.
func unquote(b []byte) []byte {
	out := b[:0]
	for {
		k := bytes.IndexByte(b, '"')
		if k < 0 {
			return append(out, b...)
		}
		out = append(out, b[:k+1]...)
		b = b[k+2:]
	}
}

// CountCSV reads records separated by commas and counts them, the header
// included: the reader's speed without anything behind it.
func CountCSV(r io.Reader) (int, error) {
	c := newCSV(r, ',', false)
	for n := 0; ; n++ {
		if _, err := c.next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}
