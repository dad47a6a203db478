package usage

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/402claw/clawr"
)

// CodeBadEvents is the code of a file of events that cannot be read.
const CodeBadEvents clawr.Code = "invalid_events"

// maxLine bounds one event of an NDJSON file.
const maxLine = 1 << 20

// Parsed counts what Parse met.
type Parsed struct {
	Events     int `json:"events"`     // handed on
	Dropped    int `json:"dropped"`    // no time, no api, or no object at all
	Duplicates int `json:"duplicates"` // a later one of the same api and request id
}

// Parse reads somebody else's events, NDJSON or one JSON array, and hands each
// to each as product.md says they are to be understood: with its aliases and
// defaults, without what has no time or no api, and only the first of every
// (api, request id). An event without a request id gets one that depends on
// its place and its bytes, so that reading the same file again makes the same
// events. Text that is no JSON ends the reading with an Error that says where;
// what came before has been handed on by then. An error of each ends it too.
//
// It remembers some 40 bytes for each request id.
func Parse(r io.Reader, each func(Event) error) (Parsed, error) {
	p := parser{each: each, seen: make(map[[16]byte]struct{})}
	br := bufio.NewReaderSize(r, 64<<10)
	if bom, _ := br.Peek(3); bytes.Equal(bom, []byte("\ufeff")) {
		_, _ = br.Discard(3) // buffered already: it cannot fail
	}
	first, err := firstByte(br)
	switch {
	case errors.Is(err, io.EOF):
		return p.Parsed, nil
	case err != nil:
		return p.Parsed, err
	case first == '[':
		err = p.array(br)
	default:
		err = p.lines(br)
	}
	return p.Parsed, err
}

// firstByte is the first one that is not white space, left unread.
func firstByte(br *bufio.Reader) (byte, error) {
	for {
		c, err := br.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c, br.UnreadByte()
		}
	}
}

type parser struct {
	Parsed
	each  func(Event) error
	seen  map[[16]byte]struct{}
	index uint64
}

func (p *parser) lines(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	n := 0
	for sc.Scan() {
		n++
		line := bytes.TrimSpace(sc.Bytes())
		if len(line) == 0 {
			continue
		}
		if !json.Valid(line) {
			if sc.Err() != nil {
				return sc.Err() // the line is cut off
			}
			return badEvents(fmt.Sprintf("event line %d is not JSON", n))
		}
		if err := p.one(line); err != nil {
			return err
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return badEvents(fmt.Sprintf("event line %d is longer than 1 MB", n+1))
	}
	return sc.Err()
}

func (p *parser) array(r io.Reader) error {
	dec := json.NewDecoder(r)
	bad := func(err error) error {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return badEvents(fmt.Sprintf("element %d of the array is not JSON, or the array does not end", p.index+1))
		}
		return err
	}
	if _, err := dec.Token(); err != nil {
		return bad(err)
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return bad(err)
		}
		if err := p.one(raw); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return bad(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badEvents("something follows the array")
	}
	return nil
}

func badEvents(message string) error {
	return &clawr.Error{Code: CodeBadEvents, Message: message, Fix: "give one JSON object a line, or one JSON array of objects"}
}

func (p *parser) one(raw []byte) error {
	p.index++
	e, ok := normalize(raw)
	if !ok || e.API == "" {
		p.Dropped++
		return nil
	}
	if e.RequestID == "" {
		h := sha256.New()
		h.Write(binary.BigEndian.AppendUint64(nil, p.index))
		h.Write(raw)
		e.RequestID = "imp_" + hex.EncodeToString(h.Sum(nil)[:12])
	}
	sum := sha256.Sum256([]byte(e.API + "\x00" + e.RequestID))
	key := [16]byte(sum[:16])
	if _, known := p.seen[key]; known {
		p.Duplicates++
		return nil
	}
	p.seen[key] = struct{}{}
	p.Events++
	return p.each(e)
}
