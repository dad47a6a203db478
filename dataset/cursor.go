package dataset

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"

	"github.com/402claw/clawr"
)

// A cursor is the base64url of
//
//	version 8 | hash of filters, q, select and sort 8 | last row 4 | MAC 12
//
// The row stands for the values it is sorted by: rows of a version do not
// change, and a cell of a megabyte would not fit a URL.
const (
	cursorBody = 8 + 8 + 4
	cursorSize = cursorBody + 12
)

func badCursor(why string) *clawr.Error {
	return &clawr.Error{Code: CodeInvalidCursor, Param: "cursor", Message: "the cursor cannot be used: " + why,
		Fix: "take meta.next of the page before as it is, or begin without a cursor"}
}

// questionHash is the part of a query that a cursor is good for.
func (q *Query) questionHash(s *Schema) uint64 {
	var tmp [512]byte
	h := fnv.New64a()
	_, _ = h.Write(q.appendFilters(tmp[:0], s))
	return h.Sum64()
}

func (h *Handler) appendCursor(b []byte, s *Schema, q *Query, row uint32) []byte {
	var raw [cursorSize]byte
	_, _ = hex.Decode(raw[:8], []byte(s.Version))
	binary.BigEndian.PutUint64(raw[8:], q.questionHash(s))
	binary.BigEndian.PutUint32(raw[16:], row)
	h.mac(raw[:cursorBody], raw[cursorBody:])
	return base64.RawURLEncoding.AppendEncode(b, raw[:])
}

func (h *Handler) mac(body, out []byte) {
	m := hmac.New(sha256.New, h.CursorKey)
	_, _ = m.Write([]byte("clawr cursor\x00"))
	_, _ = m.Write(body)
	copy(out, m.Sum(nil))
}

// openCursor verifies a cursor's MAC; version and row mean nothing before.
func (h *Handler) openCursor(token string) (version string, question uint64, row uint32, err error) {
	raw, derr := base64.RawURLEncoding.Strict().DecodeString(token)
	if derr != nil || len(raw) != cursorSize {
		return "", 0, 0, badCursor("it is not one of ours")
	}
	var sum [cursorSize - cursorBody]byte
	h.mac(raw[:cursorBody], sum[:])
	if !hmac.Equal(sum[:], raw[cursorBody:]) {
		return "", 0, 0, badCursor("it is not one of ours")
	}
	return hex.EncodeToString(raw[:8]), binary.BigEndian.Uint64(raw[8:]), binary.BigEndian.Uint32(raw[16:]), nil
}
