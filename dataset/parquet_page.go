package dataset

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/402claw/clawr"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The encodings of pages.
const (
	encPlain        = 0
	encPlainDict    = 2 // the old name of encDict
	encRLE          = 3
	encDelta        = 5
	encDeltaLengths = 6
	encDeltaBytes   = 7
	encDict         = 8
	encSplit        = 9
)

// pageHeader is what comes before a page.
type pageHeader struct {
	kind          int64 // 0 data, 2 dictionary, 3 data of version 2
	size, stored  int64 // bytes unpacked, and in the file
	values        int64
	encoding      int64
	levelEncoding int64
	levels        int64 // bytes of definition levels, in version 2
	repeats       int64 // bytes of repetition levels, in version 2; a flat column has none to heed
	plain         bool  // not compressed, in version 2
}

func readPageHeader(c *compact) (h pageHeader) {
	h.kind, h.values, h.levelEncoding = -1, -1, encRLE
	c.fields(func(id int, kind byte) {
		switch {
		case id == 1:
			h.kind = c.int()
		case id == 2:
			h.size = c.int()
		case id == 3:
			h.stored = c.int()
		case (id == 5 || id == 7 || id == 8) && kind == thriftStruct:
			c.fields(func(field int, kind byte) {
				switch {
				case field == 1:
					h.values = c.int()
				case field == 2 && id != 8, field == 4 && id == 8:
					h.encoding = c.int()
				case field == 3 && id == 5:
					h.levelEncoding = c.int()
				case field == 5 && id == 8:
					h.levels = c.int()
				case field == 6 && id == 8:
					h.repeats = c.int()
				case field == 7 && id == 8:
					h.plain = kind == thriftFalse
				}
			})
		}
	})
	return h
}

// chunk reads the pages of one column of one row group into its cells.
func (p *parquetFile) chunk(ctx context.Context, l *leaf, ch columnChunk, rows int64, into *cells) error {
	r := &pageReader{leaf: l, file: p, into: into, row: p.table.rows}
	bad := func(what string, err error) error {
		return badParquet(fmt.Sprintf("column %q, behind row %d: %s", printable(l.name), r.row, what), err)
	}
	at := ch.at
	for left := rows; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, n, err := p.header(at)
		if err != nil {
			return err
		}
		at += n + h.stored
		p.walked += n + h.stored
		p.unpacked += h.size
		switch {
		case h.kind < 0 || h.stored < 0 || h.size < 0 || h.values < 0 && h.kind != 1 || h.levels < 0 || h.repeats < 0:
			return bad("a page says nothing of itself", nil)
		case h.size > maxPage || h.stored > maxPage:
			return bad(fmt.Sprintf("a page has %d bytes, at most %d are possible", max(h.size, h.stored), maxPage), nil)
		case p.walked > p.size:
			return bad("pages overlap", nil)
		case p.unpacked > 8*p.limit:
			return &clawr.Error{Code: CodeFileTooLarge, Message: fmt.Sprintf("the pages of the file have more than %d bytes", 8*p.limit), Fix: "split the file"}
		case h.kind == 1: // of an index
			continue
		}
		if int64(cap(p.body)) < h.stored {
			p.body = make([]byte, h.stored)
		}
		body := p.body[:h.stored]
		if err := p.readAt(body, at-h.stored); err != nil {
			return err
		}
		if h.kind == 2 {
			if body, err = p.codecs.unpack(ch.codec, body, h.size); err != nil {
				return bad("a page cannot be unpacked", err)
			}
			if err := r.dictionary(&h, body); err != nil {
				return err
			}
			continue
		}
		if h.values > left || h.kind != 0 && h.kind != 3 {
			return bad("a page has more values than there are rows", nil)
		}
		if err := r.data(&h, ch.codec, body, bad); err != nil {
			return err
		}
		left -= h.values
	}
	return nil
}

// header reads what is before a page at some place, and how long that is.
func (p *parquetFile) header(at int64) (h pageHeader, n int64, err error) {
	for size := int64(512); ; size *= 8 {
		b := make([]byte, max(min(size, p.size-at), 0))
		if err := p.readAt(b, at); err != nil {
			return h, 0, err
		}
		c := &compact{b: b}
		if h = readPageHeader(c); !c.bad {
			return h, int64(c.i), nil
		}
		if int64(len(b)) < size || size > maxHeader {
			return h, 0, badParquet("a page cannot be found", nil)
		}
	}
}

// codecs unpacks pages. Its result is valid until the next call.
type codecs struct {
	room   []byte
	zstd   *zstd.Decoder
	gzip   *gzip.Reader
	brotli *brotli.Reader
}

func (u *codecs) close() {
	if u.zstd != nil {
		u.zstd.Close()
	}
}

// unpack gives exactly size bytes: no page can become more than it said.
func (u *codecs) unpack(codec int64, b []byte, size int64) ([]byte, error) {
	if codec == 0 {
		return b, nil
	}
	if int64(cap(u.room)) < size {
		u.room = make([]byte, size)
	}
	out := u.room[:size]
	if size == 0 {
		return out, nil
	}
	var err error
	n := int(size)
	switch codec {
	case 1:
		if n, err = snappy.DecodedLen(b); err == nil && int64(n) == size {
			out, err = snappy.Decode(out, b)
		}
	case 2:
		if u.gzip == nil {
			u.gzip = new(gzip.Reader)
		}
		if err = u.gzip.Reset(bytes.NewReader(b)); err == nil {
			n, err = io.ReadFull(u.gzip, out)
		}
	case 4:
		if u.brotli == nil {
			u.brotli = new(brotli.Reader)
		}
		if err = u.brotli.Reset(bytes.NewReader(b)); err == nil {
			n, err = io.ReadFull(u.brotli, out)
		}
	case 6:
		if u.zstd == nil {
			u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPage), zstd.WithDecoderLowmem(true))
		}
		if err == nil {
			err = u.zstd.Reset(bytes.NewReader(b))
		}
		if err == nil {
			n, err = io.ReadFull(u.zstd, out)
		}
	case 7:
		n, err = lz4.UncompressBlock(b, out)
	default:
		return nil, &clawr.Error{Code: CodeParquet, Message: "the Parquet file is compressed in a way that is not known", Fix: "write it with snappy, zstd, gzip, brotli or lz4_raw"}
	}
	if err == nil && int64(n) != size {
		err = fmt.Errorf("%d bytes where %d should be", n, size)
	}
	return out, err
}

// pageReader turns the pages of a chunk into cells.
type pageReader struct {
	leaf *leaf
	file *parquetFile
	into *cells
	row  int // of the next value
	dict []entry
	text []byte // of the dictionary's entries
	cell []byte // room
}

// entry is a value of a dictionary: a part of text.
type entry struct {
	from, to int
	mask     mask
	seen     bool // the column knows that it has such a value
}

// dictionary reads the values that the data pages point to, each once.
func (r *pageReader) dictionary(h *pageHeader, b []byte) error {
	if h.encoding != encPlain && h.encoding != encPlainDict || r.dict != nil {
		return badParquet(fmt.Sprintf("column %q has a dictionary that cannot be read", printable(r.leaf.name)), nil)
	}
	next := (&values{leaf: r.leaf, b: b}).plain()
	for range h.values {
		v, ok := next()
		if !ok {
			return badParquet(fmt.Sprintf("the dictionary of column %q ends too early", printable(r.leaf.name)), nil)
		}
		e := entry{from: len(r.text)}
		var err error
		if r.text, e.mask, err = r.render(r.text, v); err != nil {
			return err
		}
		e.to = len(r.text)
		r.dict = append(r.dict, e)
	}
	return nil
}

// data reads a page of values.
func (r *pageReader) data(h *pageHeader, codec int64, b []byte, bad func(string, error) error) error {
	short := func() error { return bad("a page ends too early", nil) }
	var levels []byte
	size := h.size
	if h.kind == 3 { // levels come first, and are not compressed
		if h.repeats+h.levels > int64(len(b)) || h.repeats+h.levels > size {
			return short()
		}
		levels, b, size = b[h.repeats:h.repeats+h.levels], b[h.repeats+h.levels:], size-h.repeats-h.levels
		if h.plain {
			codec = 0
		}
	}
	b, err := r.file.codecs.unpack(codec, b, size)
	if err != nil {
		if e, ok := err.(*clawr.Error); ok {
			return e
		}
		return bad("a page cannot be unpacked", err)
	}
	if h.kind == 0 && r.leaf.optional {
		if h.levelEncoding != encRLE {
			return bad("its levels are in an encoding that is no longer used", nil)
		}
		var ok bool
		if levels, b, ok = prefixed(b); !ok {
			return short()
		}
	}
	next, err := r.values(h, b)
	if err != nil {
		return bad(err.Error(), nil)
	}
	there := rle{b: levels, width: 1}
	for range h.values {
		defined := uint32(1)
		if r.leaf.optional {
			var ok bool
			if defined, ok = there.next(); !ok {
				return short()
			}
		}
		if defined == 0 {
			r.into.addNull()
			r.row++
			continue
		}
		e, text, ok, err := next()
		switch {
		case err != nil:
			return err
		case !ok:
			return short()
		}
		if err := r.add(e, text); err != nil {
			return err
		}
	}
	return nil
}

// values gives a page's values one after the other, as text.
func (r *pageReader) values(h *pageHeader, b []byte) (func() (*entry, []byte, bool, error), error) {
	if h.encoding == encDict || h.encoding == encPlainDict {
		if len(b) == 0 { // every value is null
			return func() (*entry, []byte, bool, error) { return nil, nil, false, nil }, nil
		}
		index := rle{b: b[1:], width: uint(b[0])}
		return func() (*entry, []byte, bool, error) {
			i, ok := index.next()
			if !ok || int64(i) >= int64(len(r.dict)) {
				return nil, nil, false, nil
			}
			e := &r.dict[i]
			return e, r.text[e.from:e.to], true, nil
		}, nil
	}
	next, err := (&values{leaf: r.leaf, b: b}).decode(h)
	if err != nil {
		return nil, err
	}
	var e entry
	return func() (*entry, []byte, bool, error) {
		v, ok := next()
		if !ok {
			return nil, nil, false, nil
		}
		var err error
		r.cell, e.mask, err = r.render(r.cell[:0], v)
		e.seen = false
		return &e, r.cell, true, err
	}, nil
}

// render writes a value as text that may be a cell.
func (r *pageReader) render(b, v []byte) ([]byte, mask, error) {
	l, from := r.leaf, len(b)
	if l.logical == logicalDecimal && len(v) > 64 {
		return b, 0, r.refuse(CodeParquet, "a decimal of more than 64 bytes", "write fewer digits")
	}
	if len(v) > MaxCell {
		return b, 0, r.refuse(CodeCellTooLarge, fmt.Sprintf("a cell has %d bytes, at most %d are possible", len(v), MaxCell), "shorten it")
	}
	b, m := l.text(b, v)
	if l.physical >= physBytes {
		switch e, _ := checkCell(b[from:], 0, 0, "").(*clawr.Error); {
		case e == nil:
		case e.Code == CodeNUL:
			return b, 0, r.refuse(e.Code, "a cell contains a NUL byte", "remove it")
		default:
			return b, 0, r.refuse(e.Code, "a cell is not UTF-8", "leave the column out, or write it as text")
		}
	}
	return b, m, nil
}

// refuse names the place of a value: in a dictionary, that of the first row
// that could have it.
func (r *pageReader) refuse(code clawr.Code, what, fix string) error {
	i := 0
	for i < len(r.file.leaves) && r.file.leaves[i] != r.leaf {
		i++
	}
	return &clawr.Error{Code: code, Message: fmt.Sprintf("column %d (%s), row %d or after: %s", i+1, printable(r.leaf.name), r.row+1, what), Fix: fix}
}

// add adds a cell to the column.
func (r *pageReader) add(e *entry, text []byte) error {
	row := r.row
	r.row++
	if e.mask == 0 {
		r.leaf.nans++
		r.into.addNull()
		return nil
	}
	if r.file.cells += int64(len(text)); r.file.cells > r.file.limit {
		return tooLarge(r.file.limit)
	}
	r.leaf.longest = max(r.leaf.longest, len(text))
	if !e.seen && len(text) > 0 && r.into.mask != textOnly {
		r.into.narrow(e.mask, text, row)
		e.seen = true
	}
	r.into.add(text)
	return nil
}

// prefixed splits what a length of four bytes stands before.
func prefixed(b []byte) (head, rest []byte, ok bool) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, false
	}
	n := 4 + binary.LittleEndian.Uint32(b)
	return b[4:n], b[n:], true
}
