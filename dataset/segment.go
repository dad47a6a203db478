package dataset

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/402claw/clawr"
)

// Segment is one version of a dataset, mapped into memory. Its methods may be
// used by many goroutines, until Close.
type Segment struct {
	id      string
	version string
	binary  version
	hash    uint64 // FNV-1a of id
	schema  *Schema
	data    []byte // the whole file
	n       int    // rows
	body    []byte // rendered rows, each followed by a comma
	rowBase []uint64
	rowRel  []uint32
	cols    []column
	key     int // column of {key}, or -1
	words   postings
	entry   *cached // of the Cache that opened it
}

// column is one column of a segment. A number or date has an ordinal per row;
// bools and text a code, which is 0 for null. Codes order as values do where
// sorted is set.
type column struct {
	typ      Type
	decimals int
	name     string
	values   []int64
	codes8   []uint8
	codes16  []uint16
	codes32  []uint32
	dictOff  []uint32
	dict     []byte
	sorted   bool
	perm     []uint32 // nil: not indexed
	nulls    int
}

func corrupt(format string, args ...any) error {
	return &clawr.Error{Code: clawr.CodeSegmentCorrupt, Status: 500, Message: "the dataset's segment is damaged: " + fmt.Sprintf(format, args...),
		Fix: "deploy the file again, or roll back to another version"}
}

// Open maps a segment and verifies all of it: a segment that is not exactly
// what was written, or not under the name it was written to, is refused with
// segment_corrupt.
func Open(path string) (*Segment, error) { return openSegment(path, true) }

// openSegment can leave the checksums of the sections out, for a file that this
// process has verified before; names and sizes are always checked.
func openSegment(path string, verify bool) (*Segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Status: 500, Message: "the dataset's segment cannot be opened: " + cause(err),
			Fix: "deploy the file again, or roll back to another version", Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < int64(len(magic)+trailerSize) || st.Size() > 1<<46 {
		return nil, corrupt("it has %d bytes", st.Size())
	}
	data, err := mapFile(f, int(st.Size()))
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Status: 500, Message: "the dataset's segment cannot be mapped: " + cause(err), Err: err}
	}
	s := &Segment{data: data, key: -1}
	if err := s.load(strings.TrimSuffix(filepath.Base(path), suffix), verify); err != nil {
		_ = unmapFile(data)
		return nil, err
	}
	return s, nil
}

// Close unmaps the segment. Nothing that came from it may be used afterwards.
func (s *Segment) Close() error {
	if s.data == nil {
		return nil
	}
	data := s.data
	*s = Segment{id: s.id, version: s.version, key: -1, entry: s.entry}
	return unmapFile(data)
}

// ID is the hash of what the segment contains, 64 hex digits; its file is named
// by it.
func (s *Segment) ID() string { return s.id }

// Version is the short form of the id, as answers have it.
func (s *Segment) Version() string { return s.version }

// Schema describes the dataset. It must not be changed.
func (s *Segment) Schema() *Schema { return s.schema }

// Rows is how many rows there are.
func (s *Segment) Rows() int { return s.n }

// Size is the segment's size in bytes.
func (s *Segment) Size() int64 { return int64(len(s.data)) }

// row is the JSON of one row.
func (s *Segment) row(i int) []byte { return s.body[s.rowAt(i) : s.rowAt(i+1)-1] }

// rowAt is where a row starts in body; that of row n is the end.
func (s *Segment) rowAt(i int) uint64 {
	if i == s.n {
		return uint64(len(s.body))
	}
	return s.rowBase[i>>8] + uint64(s.rowRel[i])
}

// loader collects the sections of a segment while it is opened.
type loader struct {
	data  []byte
	found map[[2]uint16][]byte
}

func (s *Segment) load(name string, verify bool) error {
	b := s.data
	tail := b[len(b)-trailerSize:]
	if string(b[:len(magic)]) != magic || string(tail[4:]) != endMagic {
		return corrupt("its marks are missing")
	}
	count := int(binary.LittleEndian.Uint32(tail))
	if count > maxSections || count*entrySize > len(b)-trailerSize-len(magic) {
		return corrupt("it has %d sections", count)
	}
	start := len(b) - trailerSize - count*entrySize
	table := b[start : start+count*entrySize]
	if s.id = idOf(table); s.id != name {
		return corrupt("it is %s and not %s", s.id, name)
	}
	s.version = VersionOf(s.id)
	_, _ = hex.Decode(s.binary[:], []byte(s.version))
	s.hash = fnv1a(fnvBasis, s.id)
	l := loader{b, make(map[[2]uint16][]byte, count)}
	for e := table; len(e) > 0; e = e[entrySize:] {
		k, col := binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint16(e[2:])
		crc := binary.LittleEndian.Uint32(e[4:])
		off, size := binary.LittleEndian.Uint64(e[8:]), binary.LittleEndian.Uint64(e[16:])
		if off%align != 0 || off > uint64(start) || size > uint64(start)-off {
			return corrupt("section %d lies outside", k)
		}
		sec := b[off : off+size : off+size]
		if verify && crc32.Checksum(sec, castagnoli) != crc {
			return corrupt("section %d of column %d does not match its checksum", k, col)
		}
		l.found[[2]uint16{k, col}] = sec
	}
	return s.assemble(&l)
}

// ints looks at a section as integers.
func ints[T uint8 | uint16 | uint32 | uint64 | int64](l *loader, k kind, col int) []T {
	b := l.found[[2]uint16{uint16(k), uint16(col)}]
	var t T
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(t)))
}

func (l *loader) bytes(k kind, col int) []byte { return l.found[[2]uint16{uint16(k), uint16(col)}] }

// assemble checks that the sections fit together, so that no query can step
// outside of them.
func (s *Segment) assemble(l *loader) error {
	var meta segmentMeta
	if err := json.Unmarshal(l.bytes(secMeta, 0), &meta); err != nil || meta.Schema == nil {
		return corrupt("its schema cannot be read")
	}
	s.schema = meta.Schema
	s.schema.Version, s.schema.Index = s.version, meta.Index
	s.n = int(s.schema.Rows)
	s.body, s.rowBase, s.rowRel = l.bytes(secRows, 0), ints[uint64](l, secRowBase, 0), ints[uint32](l, secRowRel, 0)
	if s.n < 1 || len(s.rowRel) != s.n || len(s.rowBase) != (s.n+255)/256+1 || len(s.schema.Columns) > MaxColumns || len(meta.Sorted) != len(s.schema.Columns) {
		return corrupt("its parts do not fit together")
	}
	s.cols = make([]column, len(s.schema.Columns))
	for i := range s.cols {
		d, c := &s.schema.Columns[i], &s.cols[i]
		*c = column{typ: d.Type, decimals: d.Fraction, name: d.Name, nulls: int(d.Nulls), sorted: meta.Sorted[i], perm: ints[uint32](l, secPerm, i)}
		if d.Type == Text || d.Type == Bool {
			codes := l.bytes(secCodes, i)
			switch len(codes) / s.n {
			case 1:
				c.codes8 = ints[uint8](l, secCodes, i)
			case 2:
				c.codes16 = ints[uint16](l, secCodes, i)
			case 4:
				c.codes32 = ints[uint32](l, secCodes, i)
			}
			c.dictOff, c.dict = ints[uint32](l, secDictOff, i), l.bytes(secDict, i)
		} else {
			c.values = ints[int64](l, secValues, i)
		}
		if len(c.values)+len(c.codes8)+len(c.codes16)+len(c.codes32) != s.n || c.perm != nil && len(c.perm) != s.n {
			return corrupt("column %s has a wrong length", d.Name)
		}
		if d.Type == Text && int64(len(c.dictOff)) != d.Distinct+1 {
			return corrupt("column %s has a wrong dictionary", d.Name)
		}
		if d.Name == s.schema.Key {
			s.key = i
		}
	}
	w := &s.words
	w.tokenOff, w.tokens = ints[uint32](l, secTokenOff, 0), l.bytes(secTokens, 0)
	w.postOff, w.posts = ints[uint32](l, secPostOff, 0), ints[uint32](l, secPosts, 0)
	if len(w.tokenOff) == 0 || len(w.postOff) != len(w.tokenOff) {
		return corrupt("its words do not fit together")
	}
	return nil
}

// ordinal is the value of a row as an integer that orders like it; in text
// columns that are not sorted it only tells values apart.
func (c *column) ordinal(row uint32) int64 {
	switch {
	case c.values != nil:
		return c.values[row]
	case c.codes8 != nil:
		return int64(c.codes8[row])
	case c.codes16 != nil:
		return int64(c.codes16[row])
	}
	return int64(c.codes32[row])
}

// isNull tells whether a row has no value.
func (c *column) isNull(row uint32) bool {
	if c.values != nil {
		return c.values[row] == maxNull
	}
	return c.ordinal(row) == 0
}

// distinct is how many values a text column has; their codes start at 1.
func (c *column) distinct() int { return len(c.dictOff) - 1 }

// text is the value of a code above 0.
func (c *column) text(code int64) []byte { return c.dict[c.dictOff[code-1]:c.dictOff[code]] }

// appendJSON writes the value of a row.
func (c *column) appendJSON(b []byte, row uint32) []byte {
	n := c.ordinal(row)
	if c.typ != Text {
		if c.typ == Bool && n == 0 {
			return append(b, "null"...)
		}
		return appendOrdinal(b, n, c.typ, c.decimals)
	}
	if n == 0 {
		return append(b, "null"...)
	}
	return appendString(b, c.text(n))
}
