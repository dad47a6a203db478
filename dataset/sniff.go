package dataset

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/402claw/clawr"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
)

// source is a stranger's file on its way to the reader of its format.
type source struct {
	r      *bufio.Reader // UTF-8 without a mark
	format string        // csv, json, ndjson or parquet; TSV is CSV with a tab
	delim  byte
	tabbed bool
	packed bool // with gzip or zstd
	limit  int64
	count  *counter
	close  func()
}

// counter counts what was read of the file as it is stored, and stops at a
// limit what comes out of it.
type counter struct {
	r     io.Reader
	n     int64
	limit int64 // 0 = none
	eof   error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.limit > 0 && c.n > c.limit {
		return 0, tooLarge(c.limit)
	}
	if err != nil && err != io.EOF {
		c.eof = err
	}
	return n, err
}

func tooLarge(limit int64) error {
	return &clawr.Error{Code: CodeFileTooLarge, Message: fmt.Sprintf("the file has more than %d bytes of text", limit), Fix: "split the file"}
}

// open finds out how a file is packed, encoded and laid out.
func open(r io.Reader, name string, o *Options) (*source, error) {
	s := &source{count: &counter{r: r}, close: func() {}}
	limit := o.MaxBytes
	if limit <= 0 || limit > MaxBytes {
		limit = MaxBytes
	}
	plain, err := s.unpack(bufio.NewReaderSize(s.count, sniffBytes))
	if err != nil {
		return nil, err
	}
	s.limit = limit
	s.r = bufio.NewReaderSize(&counter{r: plain, limit: limit}, sniffBytes)
	if err := s.parquet(name, o); s.format != "" || err != nil {
		if err != nil {
			s.close()
		}
		return s, err
	}
	if err := s.decode(o.Encoding); err != nil {
		s.close()
		return nil, err
	}
	if err := s.layout(name, o); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// unpack undoes gzip and zstd, told by their first bytes.
func (s *source) unpack(r *bufio.Reader) (io.Reader, error) {
	magic, _ := r.Peek(4)
	bad := func(err error) error {
		return &clawr.Error{Code: CodeCompression, Message: "the compressed file is damaged", Fix: "compress it again", Err: err}
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, bad(err)
		}
		s.packed = true
		return &unpacker{z, bad}, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, bad(err)
		}
		s.close, s.packed = z.Close, true
		return &unpacker{z, bad}, nil
	}
	return r, nil
}

// unpacker tells damage of the packing from errors of reading.
type unpacker struct {
	r   io.Reader
	bad func(error) error
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && err != io.EOF {
		err = u.bad(err)
	}
	return n, err
}

// decode turns what the mark or the option says into UTF-8.
func (s *source) decode(name string) error {
	mark, _ := s.r.Peek(3)
	var enc encoding.Encoding
	switch {
	case name != "":
		e, err := htmlindex.Get(name)
		if err != nil {
			return &clawr.Error{Code: CodeUnknownEncoding, Param: "encoding", Message: fmt.Sprintf("%q is not an encoding that is known", name),
				Fix: "use a name of the WHATWG standard, such as utf-8, windows-1252, iso-8859-2, shift_jis or utf-16le", Err: err}
		}
		if canonical, _ := htmlindex.Name(e); canonical != "utf-8" {
			enc = e
		}
	case bytes.HasPrefix(mark, []byte{0xff, 0xfe}), bytes.HasPrefix(mark, []byte{0xfe, 0xff}):
		enc = unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM)
	}
	if enc != nil {
		s.r = bufio.NewReaderSize(enc.NewDecoder().Reader(s.r), sniffBytes)
		mark, _ = s.r.Peek(3)
	}
	if bytes.HasPrefix(mark, []byte{0xef, 0xbb, 0xbf}) {
		_, _ = s.r.Discard(3)
	}
	return nil
}

// layout settles format and delimiter: by option, then by name, then by look.
func (s *source) layout(name string, o *Options) error {
	head, err := s.r.Peek(sniffBytes)
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return err
	}
	whole := err == io.EOF
	format := strings.ToLower(o.Format)
	if format == "" {
		format = formatOf(name)
	}
	look := bytes.TrimLeft(head, " \t\r\n")
	if format == "" {
		switch {
		case bytes.HasPrefix(look, []byte{'['}):
			format = "json"
		case bytes.HasPrefix(look, []byte{'{'}):
			format = "ndjson"
		default:
			format = "csv"
		}
	}
	s.format = format
	switch format {
	case "json":
		if bytes.HasPrefix(look, []byte{'{'}) { // objects one after the other, called .json
			s.format = "ndjson"
		}
		return nil
	case "ndjson":
		return nil
	case "tsv":
		s.format, s.delim = "csv", '\t'
	case "csv":
	default:
		return &clawr.Error{Code: CodeUnknownFormat, Param: "format", Message: fmt.Sprintf("%q is not a format that can be read", format),
			Fix: "give a .csv, .tsv, .json, .ndjson or .parquet file"}
	}
	return s.delimiter(head, whole, o.Delimiter)
}

// formatOf knows formats by the ending of a file's name.
func formatOf(name string) string {
	name = strings.ToLower(path.Base(strings.ReplaceAll(name, `\`, "/")))
	for _, packed := range []string{".gz", ".zst"} {
		name = strings.TrimSuffix(name, packed)
	}
	switch path.Ext(name) {
	case ".csv":
		return "csv"
	case ".tsv", ".tab":
		return "tsv"
	case ".json":
		return "json"
	case ".ndjson", ".jsonl":
		return "ndjson"
	case ".parquet", ".pq":
		return "parquet"
	}
	return ""
}

// delimiter honours a "sep=;" line, as spreadsheets write it.
func (s *source) delimiter(head []byte, whole bool, option string) error {
	if bytes.HasPrefix(head, []byte("sep=")) && len(head) > 5 && (head[5] == '\n' || head[5] == '\r') {
		if s.delim == 0 {
			s.delim = head[4]
		}
		line := bytes.IndexByte(head, '\n') + 1
		if line == 0 {
			line = 6
		}
		_, _ = s.r.Discard(line)
		head = head[line:]
	}
	if option != "" {
		if option == `\t` || option == "tab" {
			option = "\t"
		}
		if len(option) != 1 || option[0] >= 0x80 || strings.ContainsAny(option, "\"\r\n\x00") {
			return &clawr.Error{Code: CodeBadOption, Param: "delimiter", Message: fmt.Sprintf("%q cannot be a delimiter", option),
				Fix: `use one ASCII character, such as --delimiter ";"`}
		}
		s.delim = option[0]
	}
	if s.delim == 0 {
		s.delim = guess(head, whole)
	}
	s.tabbed = s.delim == '\t'
	return nil
}

// guess takes the delimiter that splits the most lines like the first one, and
// the one with more cells where that is equal.
func guess(head []byte, whole bool) byte {
	best, bestScore, bestCells := byte(','), 0.0, 1
	for _, d := range []byte{',', ';', '\t', '|'} {
		c := newCSV(bytes.NewReader(head), d, d == '\t')
		first, same, lines := 0, 0, 0
		for {
			rec, err := c.next()
			if err != nil || !whole && c.pos == c.end && lines > 0 {
				break
			}
			if c.blank {
				continue
			}
			if lines == 0 {
				first = len(rec)
			}
			if len(rec) == first {
				same++
			}
			lines++
		}
		if first < 2 {
			continue
		}
		score := float64(same) / float64(lines)
		if score > bestScore || score == bestScore && first > bestCells {
			best, bestScore, bestCells = d, score, first
		}
	}
	return best
}
