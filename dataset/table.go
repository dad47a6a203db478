package dataset

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/402claw/clawr"
)

// table is a file in memory, column by column, before anything is written.
type table struct {
	labels   []string
	names    []string
	cols     []*cells
	rows     int
	lines    []int // every 1024th row's line, so that errors found late can name theirs
	blank    int   // blank lines that were skipped
	warnings []string
}

func (t *table) addColumn(label string) *cells {
	c := &cells{mask: anyType, nsSafe: true}
	for range t.rows { // a field that appears late in NDJSON was null before
		c.addNull()
	}
	t.labels = append(t.labels, label)
	t.cols = append(t.cols, c)
	return c
}

// startRow notes that a row begins in a line.
func (t *table) startRow(line int) error {
	if t.rows == MaxRows {
		return at(CodeTooManyRows, line, 0, "", fmt.Sprintf("more than %d rows", MaxRows), "split the file")
	}
	if t.rows%1024 == 0 {
		t.lines = append(t.lines, line)
	}
	return nil
}

// readCSV fills a table from delimited text.
func readCSV(ctx context.Context, c *csvReader, tick func(rows int)) (*table, error) {
	t := &table{}
	head, err := c.next()
	for err == nil && c.blank {
		t.blank++
		head, err = c.next()
	}
	if err == io.EOF {
		return nil, &clawr.Error{Code: CodeEmpty, Message: "the file is empty", Fix: "give a file with a header line and at least one row"}
	}
	if err != nil {
		return nil, err
	}
	if err := checkRecord(c, head, nil); err != nil {
		return nil, err
	}
	if len(head) > MaxColumns {
		_, err := columnNames(make([]string, len(head)), c.line)
		return nil, err
	}
	for _, h := range head {
		t.addColumn(string(h))
	}
	if t.names, err = columnNames(t.labels, c.line); err != nil {
		return nil, err
	}
	for {
		rec, err := c.next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		if t.rows&1023 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			tick(t.rows)
		}
		if c.blank && len(t.cols) > 1 {
			t.blank++
			continue
		}
		if len(rec) != len(t.cols) {
			return nil, at(CodeRaggedRow, c.line, min(len(rec), len(t.cols)), "", fmt.Sprintf("%d cells where the header has %d", len(rec), len(t.cols)),
				"give the row as many cells as the header; quote cells that contain the delimiter or line ends")
		}
		if err := checkRecord(c, rec, t.labels); err != nil {
			return nil, err
		}
		if err := t.startRow(c.line); err != nil {
			return nil, err
		}
		for i, b := range rec {
			col := t.cols[i]
			col.add(b)
			if col.mask != textOnly {
				col.see(b, t.rows)
			}
		}
		t.rows++
	}
}

// checkRecord holds a record against the limits of records.md.
func checkRecord(c *csvReader, rec [][]byte, labels []string) error {
	raw := c.raw
	if len(raw) <= MaxCell && utf8.Valid(raw) && (!c.nul || bytes.IndexByte(raw, 0) < 0) {
		return nil
	}
	if len(raw) > MaxRow {
		return rowTooLarge(c.line, int64(len(raw)))
	}
	for i, b := range rec {
		label := ""
		if i < len(labels) {
			label = labels[i]
		}
		if err := checkCell(b, c.line, i+1, label); err != nil {
			return err
		}
	}
	return nil
}

func checkCell(b []byte, line, column int, label string) error {
	switch {
	case len(b) > MaxCell:
		return at(CodeCellTooLarge, line, column, label, fmt.Sprintf("the cell has %d bytes, at most %d are possible", len(b), MaxCell),
			"shorten it, or close a quote that was left open")
	case !utf8.Valid(b):
		return at(CodeInvalidUTF8, line, column, label, "the cell is not UTF-8", "name the file's encoding, for instance --encoding windows-1252")
	case bytes.IndexByte(b, 0) >= 0:
		return at(CodeNUL, line, column, label, "the cell contains a NUL byte", "remove it, or name the file's encoding with --encoding")
	}
	return nil
}

// decide settles the types, and checks overrides against every cell.
func (t *table) decide(overrides map[string]Type) ([]Type, error) {
	types := make([]Type, len(t.cols))
	for i, c := range t.cols {
		types[i] = c.mask.best()
		if types[i] == Datetime && c.decimals() == 9 && !c.nsSafe {
			types[i] = Text
		}
	}
	for name, want := range overrides {
		i := t.index(name)
		if i < 0 {
			s := Schema{}
			for _, n := range t.names {
				s.Columns = append(s.Columns, Column{Name: n})
			}
			_, err := s.find(name, "type")
			return nil, err
		}
		if err := t.mustFit(i, want); err != nil {
			return nil, err
		}
		types[i] = want
	}
	return types, nil
}

func (t *table) index(name string) int {
	for i := range t.cols {
		if t.names[i] == name || t.labels[i] == name {
			return i
		}
	}
	return -1
}

// mustFit finds the first cell that is not of the wanted type.
func (t *table) mustFit(i int, want Type) error {
	c := t.cols[i]
	if want == Text {
		return nil
	}
	r := c.reader()
	for row := range t.rows {
		b, null := r.next()
		if null || len(b) == 0 {
			continue
		}
		if classify(b)&(1<<want) == 0 {
			return &clawr.Error{Code: CodeTypeMismatch, Param: "type",
				Message: fmt.Sprintf("row %d, column %d (%s): %q is not %s %s", row+1, i+1, t.labels[i], clip(b), article(want), want),
				Fix:     fmt.Sprintf("correct the cell, or leave out --type %s=%s", t.names[i], want)}
		}
		if want == Datetime {
			c.measure(b)
		}
	}
	if want == Datetime && c.decimals() == 9 && !c.nsSafe {
		return &clawr.Error{Code: CodeTypeMismatch, Param: "type",
			Message: fmt.Sprintf("column %s has times to the nanosecond outside 1685 to 2255, which do not fit", t.names[i]),
			Fix:     "leave them text, or round them to microseconds"}
	}
	return nil
}

func article(t Type) string {
	if t == Int {
		return "an"
	}
	return "a"
}

// clip cuts a cell for a message, between characters.
func clip(b []byte) string {
	if len(b) <= 40 {
		return string(b)
	}
	n := 40
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return string(b[:n]) + "…"
}
