package dataset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/402claw/clawr"
)

// Ingest reads a file and publishes it as a segment in dir, which must exist.
// The segment appears there whole or not at all, named by its id; the same file
// with the same options gives the same id. Name is the file's, for
// its ending and as a title. Errors are *clawr.Error with the codes above.
func Ingest(ctx context.Context, r io.Reader, name string, o Options, dir string) (*Report, error) {
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, writeError(err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing of that name
	defer f.Close()
	rep, err := ingest(ctx, r, name, o, &flusher{f: f}, dir)
	if err != nil {
		return nil, err
	}
	rep.Path = Path(dir, rep.ID)
	if err := publish(f, rep); err != nil {
		return nil, writeError(err)
	}
	return rep, nil
}

// Inspect reads a file as Ingest does, and writes nothing.
func Inspect(ctx context.Context, r io.Reader, name string, o Options) (*Report, error) {
	return ingest(ctx, r, name, o, io.Discard, "")
}

// publish gives a finished file its name, durably.
func publish(f *os.File, rep *Report) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), rep.Path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(rep.Path))
}

// flusher writes a file front to back and has it on its way to the disk early.
type flusher struct {
	f            *os.File
	off, started int64
}

func (w *flusher) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	if w.off += int64(n); w.off-w.started >= 8<<20 {
		startFlush(w.f, w.started, w.off-w.started)
		w.started = w.off
	}
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Sweep removes what a killed Ingest left in dir. Only the owner of the
// directory may call it, while nothing is being ingested.
func Sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	for _, p := range left {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}

// Path is where the segment of an id is in a directory.
func Path(dir, id string) string { return filepath.Join(dir, id+suffix) }

func writeError(err error) error {
	fix := "check that the data directory can be written"
	if errors.Is(err, errNoSpace) {
		fix = "make room on the disk and try again"
	}
	return &clawr.Error{Code: clawr.CodeFile, Status: 500, Message: "the dataset could not be written: " + cause(err), Fix: fix, Err: err}
}

// cause is an error without the path, which strangers need not see.
func cause(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	if p, ok := errors.AsType[*os.LinkError](err); ok {
		err = p.Err
	}
	return err.Error()
}

// ingest writes the segment to out, and what it has to put aside into dir, or
// into the system's directory for temporary files.
func ingest(ctx context.Context, r io.Reader, name string, o Options, out io.Writer, dir string) (*Report, error) {
	defer tight.begin()()
	t, read, err := load(ctx, r, name, &o, dir)
	if err != nil {
		return nil, err
	}
	types, err := t.decide(o.Types)
	if err != nil {
		return nil, err
	}
	b := &builder{ctx: ctx, table: t, types: types, w: newSegmentWriter(out)}
	b.schema = t.schema(types, name, &o)
	if err := b.options(&o); err != nil {
		return nil, err
	}
	if err := b.build(); err != nil {
		return nil, err
	}
	id, err := b.w.finish()
	if err != nil {
		return nil, writeError(err)
	}
	b.schema.Version = VersionOf(id)
	return &Report{ID: id, Version: VersionOf(id), Bytes: read, Size: int64(b.w.off), Schema: b.schema, Warnings: b.schema.Warnings}, nil
}

// load reads a whole file into a table.
func load(ctx context.Context, r io.Reader, name string, o *Options, dir string) (*table, int64, error) {
	file := plainFile(r)
	s, err := open(r, name, o)
	if err != nil {
		return nil, 0, readError(err)
	}
	defer s.close()
	told := int64(0)
	progress := func(bytes int64, rows int) {
		if o.Progress != nil && bytes-told >= 1<<20 {
			told = bytes
			o.Progress(bytes, int64(rows))
		}
	}
	tick := func(rows int) { progress(s.count.n, rows) }
	var t *table
	switch s.format {
	case "csv":
		t, err = readCSV(ctx, newCSV(s.r, s.delim, s.tabbed), tick)
	case "parquet":
		t, err = s.readParquet(ctx, file, dir, progress)
	default:
		t, err = readJSON(ctx, newJSON(s.r, s.format == "json"), tick)
	}
	if changed := file.unchanged(); changed != nil && ctx.Err() == nil {
		err = changed // whatever else was wrong, this is why
	}
	if err != nil {
		return nil, 0, readError(err)
	}
	if t.rows == 0 {
		return nil, 0, &clawr.Error{Code: CodeEmpty, Message: "the file has a header and no rows", Fix: "give at least one row"}
	}
	if o.Progress != nil {
		o.Progress(s.count.n, int64(t.rows))
	}
	return t, s.count.n, nil
}

func readError(err error) error {
	if _, ok := errors.AsType[*clawr.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &clawr.Error{Code: clawr.CodeFile, Message: "the file could not be read: " + cause(err), Fix: "check that it is a file and may be read", Err: err}
}

// schema describes the table before its values are known.
func (t *table) schema(types []Type, name string, o *Options) *Schema {
	s := &Schema{Title: o.Title, Description: o.Description, License: o.License, Source: o.Source, Rows: int64(t.rows),
		MaxOffset: int64(t.rows), PreviewRows: o.PreviewRows, Warnings: t.warnings, Search: []string{}}
	if s.Title == "" {
		s.Title = strings.TrimSuffix(path.Base(filepath.ToSlash(name)), path.Ext(name))
	}
	if s.PreviewRows == 0 {
		s.PreviewRows = 3
	}
	s.PreviewRows = max(s.PreviewRows, 0)
	if t.blank > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d blank lines were skipped", t.blank))
	}
	for i, c := range t.cols {
		col := Column{Name: t.names[i], Label: t.labels[i], Type: types[i], Nulls: c.nulls}
		if types[i] == Datetime {
			col.Fraction = c.decimals()
		}
		if types[i] == Text {
			col.Empty = c.empty
		} else {
			col.Nulls += c.empty
		}
		col.Nullable = col.Nulls > 0
		s.Columns = append(s.Columns, col)
		s.Warnings = append(s.Warnings, c.warn(col, t.rows, o.Types)...)
	}
	return s
}

// warn says what a publisher should look at before selling a column.
func (c *cells) warn(col Column, rows int, overrides map[string]Type) (w []string) {
	if _, chosen := overrides[col.Name]; !chosen && col.Type == Text && c.first >= 20 {
		w = append(w, fmt.Sprintf("column %s is text because of %q in row %d; before it is %s", col.Name, c.odd, c.first+1, c.before.best()))
	}
	if c.digits > 0 && col.Type == Float {
		w = append(w, fmt.Sprintf("column %s has %d numbers with more digits than a double keeps; --type %s=text keeps them", col.Name, c.digits, col.Name))
	}
	if int(c.nulls+c.empty) == rows {
		w = append(w, fmt.Sprintf("column %s is empty in every row", col.Name))
	}
	return w
}

// options checks the columns that options name.
func (b *builder) options(o *Options) error {
	named := func(param string, list []string) ([]string, error) {
		out := []string{}
		for _, n := range list {
			i, err := b.schema.find(n, param)
			if err != nil {
				return nil, err
			}
			if name := b.schema.Columns[i].Name; !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		return out, nil
	}
	var err error
	if b.schema.Index, err = named("index", o.Index); err != nil {
		return err
	}
	if b.schema.Search, err = named("search", o.Search); err != nil {
		return err
	}
	for _, n := range b.schema.Search {
		if c := b.schema.Columns[b.schema.Column(n)]; c.Type != Text {
			return &clawr.Error{Code: CodeBadOption, Param: "search", Message: fmt.Sprintf("column %s is %s, only text can be searched", n, c.Type),
				Fix: "leave it out of --search"}
		}
	}
	b.keyCol = -1
	if o.Key != "" {
		if b.keyCol, err = b.schema.find(o.Key, "key"); err != nil {
			return err
		}
		b.mustKey = true
	} else if i := b.schema.Column("id"); i >= 0 {
		b.keyCol = i
	}
	return nil
}

// builder turns a table into a segment.
type builder struct {
	ctx     context.Context
	table   *table
	types   []Type
	schema  *Schema
	sorted  []bool
	words   *indexer
	dict    *dict   // room for one column after the other
	values  []int64 // likewise
	codes   []uint32
	fetched byte // see cells.fetch
	w       *segmentWriter
	keyCol  int
	mustKey bool
}

func (b *builder) build() error {
	if err := b.rows(); err != nil {
		return err
	}
	b.sorted, b.words, b.dict = make([]bool, len(b.types)), newIndexer(), newDict()
	// Text needs the most room, so it comes when the cells of the others are gone.
	for _, text := range []bool{false, true} {
		for i, t := range b.types {
			if (t == Text) != text {
				continue
			}
			if err := b.column(i); err != nil {
				return err
			}
			b.table.cols[i] = nil
			b.dict.reset(nil)
		}
		b.values, b.dict.perm, b.dict.counts = nil, nil, nil
	}
	b.dict, b.codes = nil, nil
	b.words.write(b.w, b.table.rows)
	if b.keyCol >= 0 {
		b.schema.Key = b.schema.Columns[b.keyCol].Name
	}
	meta, err := json.Marshal(segmentMeta{Schema: b.schema, Index: b.schema.Index, Sorted: b.sorted})
	if err != nil {
		return err
	}
	put(b.w, secMeta, 0, meta)
	return nil
}

// column writes what belongs to one column.
func (b *builder) column(i int) error {
	if err := errors.Join(b.ctx.Err(), writeFailed(b.w.err)); err != nil {
		return err
	}
	if b.types[i] == Text {
		return b.text(i)
	}
	return b.numbers(i)
}

// rows renders every row once; an unfiltered page is then one copy.
func (b *builder) rows() error {
	readers := make([]cellReader, len(b.types))
	keys := make([][]byte, len(b.types))
	for i := range readers {
		readers[i] = b.table.cols[i].reader()
		keys[i] = append(appendString(append(make([]byte, 0, 80), ','), b.schema.Columns[i].Name), ':')
	}
	keys[0][0] = '{'
	n := b.table.rows
	base, rel := make([]uint64, 0, n/256+2), make([]uint32, n)
	b.w.begin(secRows, 0)
	start := b.w.off
	buf := make([]byte, 0, 1<<18+1<<12)
	for row := range n {
		here := b.w.off - start + uint64(len(buf))
		if row%256 == 0 {
			base = append(base, here)
		}
		rel[row] = uint32(here - base[row/256])
		for i, t := range b.types {
			cell, null := readers[i].next()
			buf = appendShort(buf, keys[i])
			if null || len(cell) == 0 && t != Text {
				buf = append(buf, "null"...)
			} else {
				buf = appendCell(buf, cell, t, b.schema.Columns[i].Fraction)
			}
		}
		buf = append(buf, '}', ',')
		if len(buf) >= 1<<18 {
			_, _ = b.w.Write(buf)
			buf = buf[:0]
			if err := b.ctx.Err(); err != nil || b.w.err != nil {
				return errors.Join(err, writeFailed(b.w.err))
			}
		}
	}
	_, _ = b.w.Write(buf)
	b.w.end()
	put(b.w, secRowBase, 0, append(base, b.w.table[len(b.w.table)-1].len))
	put(b.w, secRowRel, 0, rel)
	return nil
}

func writeFailed(err error) error {
	if err == nil {
		return nil
	}
	return writeError(err)
}

// numbers writes a column of ordinals and its order.
func (b *builder) numbers(i int) error {
	col, t := &b.schema.Columns[i], b.types[i]
	r := b.table.cols[i].reader()
	if b.values == nil {
		b.values = make([]int64, b.table.rows)
	}
	values := b.values
	for row := range values {
		cell, null := r.next()
		if null || len(cell) == 0 {
			values[row] = maxNull
		} else {
			values[row] = ordinal(cell, t, col.Fraction)
		}
	}
	o := b.dict.order(values)
	if t == Bool {
		small := make([]uint8, len(values))
		for row, v := range values {
			small[row] = uint8(max(v, 0))
		}
		put(b.w, secCodes, i, small)
	} else {
		put(b.w, secValues, i, values)
	}
	perm := o.perm
	put(b.w, secPerm, i, perm)
	col.Indexed, col.Distinct = true, o.distinct
	if col.Distinct > 0 {
		col.Min = jsonValue(values[perm[col.Nulls]], t, col.Fraction)
		col.Max = jsonValue(values[perm[len(perm)-1]], t, col.Fraction)
	}
	if o.again > 0 {
		value := string(appendOrdinal(nil, values[perm[o.again]], t, col.Fraction))
		return b.key(i, value, perm[o.again-1], perm[o.again])
	}
	return b.key(i, "", 0, 0)
}

// key holds the key's column against what it promises: a value in every row,
// and none twice. An id that is not unique is merely no key.
func (b *builder) key(i int, value string, row, twin uint32) error {
	if i != b.keyCol {
		return nil
	}
	col := &b.schema.Columns[i]
	var why string
	switch {
	case value != "":
		why = fmt.Sprintf("rows %d and %d both have %s", row+1, twin+1, value)
	case col.Nulls > 0:
		why = fmt.Sprintf("%d rows have no value", col.Nulls)
	default:
		return nil
	}
	if !b.mustKey {
		b.keyCol = -1
		b.schema.Warnings = append(b.schema.Warnings, fmt.Sprintf("column %s is not the key: %s", col.Name, why))
		return nil
	}
	return &clawr.Error{Code: CodeKeyNotUnique, Param: "key", Message: fmt.Sprintf("column %s cannot be the key: %s", col.Name, why),
		Fix: "correct the file, choose another --key, or leave it out to use row numbers"}
}
