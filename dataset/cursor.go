package dataset

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"unsafe"

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

// cursor is one that was opened.
type cursor struct {
	version  version
	question uint64
	row      uint32
}

// version is the short form of a segment's id, as bytes.
type version [8]byte

func (v version) hex() (s [16]byte) {
	hex.Encode(s[:], v[:])
	return s
}

func badCursor(why string) *clawr.Error {
	return &clawr.Error{Code: CodeInvalidCursor, Param: "cursor", Message: "the cursor cannot be used: " + why,
		Fix: "take meta.next of the page before as it is, or begin without a cursor"}
}

// fnv1a continues the 64-bit FNV-1a hash of what came before with b.
func fnv1a[S []byte | string](h uint64, b S) uint64 {
	for i := 0; i < len(b); i++ {
		h = (h ^ uint64(b[i])) * 1099511628211
	}
	return h
}

const fnvBasis = 14695981039346656037

// questionHash is the part of a query that a cursor is good for.
func (q *Query) questionHash(s *Schema) uint64 {
	var tmp [512]byte
	return fnv1a(fnvBasis, q.appendFilters(tmp[:0], s))
}

func (h *Handler) appendCursor(b []byte, v version, s *Schema, q *Query, row uint32) []byte {
	var raw [cursorSize]byte
	copy(raw[:], v[:])
	binary.BigEndian.PutUint64(raw[8:], q.questionHash(s))
	binary.BigEndian.PutUint32(raw[16:], row)
	sum := h.mac(raw[:cursorBody])
	copy(raw[cursorBody:], sum[:])
	return base64.RawURLEncoding.AppendEncode(b, raw[:])
}

// mac is HMAC-SHA-256 (RFC 2104) of a cursor's body, written out because
// crypto/hmac allocates and this is done for every page.
func (h *Handler) mac(body []byte) [sha256.Size]byte {
	const label = "clawr cursor\x00"
	var inner [sha256.BlockSize + len(label) + cursorBody]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	key := h.CursorKey
	if len(key) > sha256.BlockSize {
		sum := sha256.Sum256(key)
		key = sum[:]
	}
	copy(inner[:], key)
	copy(outer[:], key)
	for i := range sha256.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	copy(inner[sha256.BlockSize:], label)
	copy(inner[sha256.BlockSize+len(label):], body)
	sum := sha256.Sum256(inner[:])
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}

// openCursor verifies a cursor's MAC; nothing in it means anything before.
func (h *Handler) openCursor(token string) (c cursor, err error) {
	var raw [cursorSize + 3]byte
	if len(token) != base64.RawURLEncoding.EncodedLen(cursorSize) {
		return c, badCursor("it is not one of ours")
	}
	n, err := base64.RawURLEncoding.Strict().Decode(raw[:], unsafe.Slice(unsafe.StringData(token), len(token)))
	if err != nil || n != cursorSize {
		return c, badCursor("it is not one of ours")
	}
	sum := h.mac(raw[:cursorBody])
	if !hmac.Equal(sum[:cursorSize-cursorBody], raw[cursorBody:cursorSize]) {
		return c, badCursor("it is not one of ours")
	}
	copy(c.version[:], raw[:])
	c.question, c.row = binary.BigEndian.Uint64(raw[8:]), binary.BigEndian.Uint32(raw[16:])
	return c, nil
}
