package dataset

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/402claw/clawr"
)

// What a Parquet file may ask for, beside the limits of every file. Writers
// make pages of a megabyte; DuckDB goes to a hundred.
const (
	maxFooter = 16 << 20  // bytes of the description at the end
	maxHeader = 4 << 20   // bytes before a page, which may show values
	maxPage   = 128 << 20 // bytes of a page, unpacked
)

// parquetFile reads a flat Parquet file: every column holds plain values. It is
// for strangers' files: no length of theirs is believed before it is bounded.
// https://github.com/apache/parquet-format
type parquetFile struct {
	r        io.ReaderAt
	size     int64
	limit    int64 // bytes of cells
	cells    int64 // so far
	walked   int64 // bytes of pages so far: a file with more than it has points twice at some
	unpacked int64 // bytes of pages after decompression so far
	leaves   []*leaf
	groups   []rowGroup
	table    *table
	codecs   codecs
	body     []byte // room for a page as it is stored
}

type rowGroup struct {
	rows   int64
	chunks []columnChunk
}

type columnChunk struct {
	physical, codec int64
	values          int64
	at              int64 // of the first page
	ok              bool  // has all that it must
}

// readParquet fills a table from a file of some size. The limit is of the bytes
// that the values have as text. A panic can only be our bug or that of a
// decompressor, for which a stranger's file should not end the process.
func readParquet(ctx context.Context, r io.ReaderAt, size, limit int64, tick func(walked int64, rows int)) (t *table, err error) {
	defer func() {
		if e := recover(); e != nil {
			t, err = nil, badParquet("it cannot be decoded", fmt.Errorf("panic: %v", e))
		}
	}()
	p := &parquetFile{r: r, size: size, limit: limit, table: &table{}}
	defer p.codecs.close()
	if err := p.footer(); err != nil {
		return nil, err
	}
	for _, l := range p.leaves {
		p.table.addColumn(l.name)
	}
	if p.table.names, err = columnNames(p.table.labels, 0); err != nil {
		return nil, err
	}
	for _, g := range p.groups {
		for i, c := range g.chunks {
			if err := p.chunk(ctx, p.leaves[i], c, g.rows, p.table.cols[i]); err != nil {
				return nil, err
			}
			tick(p.walked, p.table.rows)
		}
		p.table.rows += int(g.rows)
	}
	for i, l := range p.leaves {
		l.warn(p.table, i)
	}
	return p.table, p.checkRows()
}

func badParquet(what string, err error) error {
	return &clawr.Error{Code: CodeParquet, Message: "the Parquet file is damaged: " + what, Fix: "write it again, or give it as CSV", Err: err}
}

// readAt fills b from an offset of the file.
func (p *parquetFile) readAt(b []byte, off int64) error {
	if off < 0 || off > p.size-int64(len(b)) {
		return badParquet("it points behind its end", nil)
	}
	n, err := p.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return badParquet("it became shorter while it was read", err)
	}
	return err
}

// footer reads the description of columns and row groups at the file's end.
func (p *parquetFile) footer() error {
	var tail [8]byte
	if p.size < 12 {
		return badParquet("it is too short", nil)
	}
	if err := p.readAt(tail[:], p.size-8); err != nil {
		return err
	}
	if string(tail[4:]) == "PARE" {
		return &clawr.Error{Code: CodeParquet, Message: "the Parquet file is encrypted", Fix: "write it without encryption"}
	}
	n := int64(binary.LittleEndian.Uint32(tail[:]))
	switch {
	case string(tail[4:]) != "PAR1":
		return badParquet("its end is missing", nil)
	case n > maxFooter:
		return badParquet(fmt.Sprintf("its description has %d bytes, at most %d are possible", n, maxFooter), nil)
	}
	b := make([]byte, min(n, p.size-8))
	if err := p.readAt(b, p.size-8-n); err != nil {
		return err
	}
	c := &compact{b: b}
	var err error
	keep := func(e error) {
		if err == nil && e != nil {
			err, c.bad = e, true
		}
	}
	rows := int64(0)
	c.fields(func(id int, kind byte) {
		switch {
		case id == 2 && kind == thriftList:
			keep(p.schema(c))
		case id == 4 && kind == thriftList:
			c.list(thriftStruct, func() {
				g, e := p.group(c)
				keep(e)
				if rows += g.rows; rows > MaxRows {
					keep(&clawr.Error{Code: CodeTooManyRows, Message: fmt.Sprintf("more than %d rows", MaxRows), Fix: "split the file"})
				}
				p.groups = append(p.groups, g)
			})
		}
	})
	if err == nil && c.bad {
		err = badParquet("its description cannot be read", nil)
	}
	if err == nil && len(p.leaves) == 0 {
		err = &clawr.Error{Code: CodeEmpty, Message: "the file has no columns", Fix: "give at least one column"}
	}
	return err
}

// schema reads the columns: a root, and its children in order of depth.
func (p *parquetFile) schema(c *compact) error {
	var err error
	first := true
	c.list(thriftStruct, func() {
		l, children := readLeaf(c)
		switch {
		case c.bad:
		case first:
			first = false
		case children || l.repeated || !l.typed:
			what := "a list"
			if children && !l.repeated && l.logical != logicalList {
				what = "a record"
			}
			err = &clawr.Error{Code: CodeNestedValue, Message: fmt.Sprintf("column %d (%s) is %s; columns hold plain values", len(p.leaves)+1, printable(l.name), what),
				Fix: "flatten it first, for instance with DuckDB: SELECT * EXCLUDE address, address.city AS city"}
			c.bad = true
		case len(p.leaves) >= MaxColumns:
			err = &clawr.Error{Code: CodeTooManyColumns, Message: fmt.Sprintf("more than %d columns", MaxColumns), Fix: "split the file or drop columns"}
			c.bad = true
		default:
			if err = checkCell([]byte(l.name), 0, 0, ""); err == nil {
				err = l.check(len(p.leaves) + 1)
			}
			p.leaves = append(p.leaves, l)
			c.bad = err != nil
		}
	})
	return err
}

// group reads a row group. Its columns must be those of the schema.
func (p *parquetFile) group(c *compact) (g rowGroup, err error) {
	g.rows = -1
	c.fields(func(id int, kind byte) {
		switch {
		case id == 1 && kind == thriftList:
			c.list(thriftStruct, func() {
				ch := readChunk(c)
				if !ch.ok || len(g.chunks) == len(p.leaves) {
					c.bad = true
				}
				g.chunks = append(g.chunks, ch)
			})
		case id == 3:
			g.rows = c.int()
		}
	})
	if c.bad {
		return g, badParquet("a row group cannot be read", nil)
	}
	if g.rows < 0 || g.rows > math.MaxInt32 || len(g.chunks) != len(p.leaves) {
		return g, badParquet("a row group has other columns than the file", nil)
	}
	for i, ch := range g.chunks {
		if ch.values != g.rows || ch.physical != p.leaves[i].physical {
			return g, badParquet(fmt.Sprintf("column %d (%s) is not what the file says it is", i+1, printable(p.leaves[i].name)), nil)
		}
	}
	return g, nil
}

func readChunk(c *compact) (ch columnChunk) {
	dict, data := int64(0), int64(0)
	away := false
	ch.physical, ch.codec, ch.values = -1, -1, -1
	c.fields(func(id int, kind byte) {
		if id == 1 || id == 8 || id == 9 { // in another file, or encrypted
			away = true
		}
		if id != 3 || kind != thriftStruct {
			return
		}
		c.fields(func(id int, _ byte) {
			switch id {
			case 1:
				ch.physical = c.int()
			case 4:
				ch.codec = c.int()
			case 5:
				ch.values = c.int()
			case 9:
				data = c.int()
			case 11:
				dict = c.int()
			}
		})
	})
	ch.at = data
	if dict > 0 && dict < data {
		ch.at = dict
	}
	ch.ok = !away && ch.physical >= 0 && ch.codec >= 0 && ch.values >= 0 && ch.at > 0
	return ch
}

// checkRows holds rows against MaxRow, if any could be too large.
func (p *parquetFile) checkRows() error {
	t, possible := p.table, 0
	for _, l := range p.leaves {
		possible += l.longest
	}
	if possible <= MaxRow {
		return nil
	}
	sizes := make([]int32, t.rows)
	for i, c := range t.cols {
		if p.leaves[i].longest == 0 {
			continue
		}
		r := c.reader()
		for row := range sizes {
			b, _ := r.next()
			if sizes[row] += int32(len(b)); sizes[row] > MaxRow {
				return &clawr.Error{Code: CodeRowTooLarge, Message: fmt.Sprintf("row %d: the row has more than %d bytes", row+1, MaxRow), Fix: "drop columns or shorten cells"}
			}
		}
	}
	return nil
}
