package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"time"
)

// SQLite ends its write-ahead log at the first frame that does not match its
// checksum, and says nothing: one bit that rots in the log drops every later
// commit, acknowledged ones too. So the head of the chain of commits is kept a
// second time, in a file of its own, after each group commit. A database whose
// head is behind the file's has lost commits.
//
// The file is written after every commit and synced once a second. A killed
// process loses none of it, for the kernel has it. A power cut may take up to
// a second of heads, and then the file is behind the database, which is no
// loss: the head only ever says that the database had at least so much.
const headSync = time.Second

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is the newest commit: how many there were, and a hash over the one
// before it and a random value, so that two histories of equal length differ.
type head struct {
	seq  int64
	hash string // 64 hex digits
}

func (h head) next() head {
	var salt [16]byte
	rand.Read(salt[:])
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %x", h.seq+1, h.hash, salt))
	return head{h.seq + 1, hex.EncodeToString(sum[:])}
}

// headFile keeps the head in two slots, the older of which is overwritten: a
// write that is cut short leaves the other.
type headFile struct {
	f       *os.File
	synced  time.Time
	dirty   bool
	syncing chan error // gets how the sync under way ended; nil: there is none
}

const (
	slotSize = 512
	slotUsed = 8 + 64 + 4 // seq, hash, CRC-32C of both
)

// errHeadFile is a file that has no valid slot: what it knew is lost.
var errHeadFile = errors.New("the file beside the database that remembers the newest commit cannot be read")

func openHead(path string) (*headFile, *head, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	h, err := readHead(f)
	return &headFile{f: f}, h, err
}

// readHead is the newest valid slot, nil for a new file.
func readHead(f *os.File) (*head, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == 0 {
		return nil, nil
	}
	var newest *head
	for slot := range int64(2) {
		var b [slotUsed]byte
		if n, _ := f.ReadAt(b[:], slot*slotSize); n < slotUsed {
			continue
		}
		if crc32.Checksum(b[:slotUsed-4], castagnoli) != binary.LittleEndian.Uint32(b[slotUsed-4:]) {
			continue
		}
		h := head{int64(binary.LittleEndian.Uint64(b[:])), strings.TrimRight(string(b[8:slotUsed-4]), "\x00")}
		if newest == nil || h.seq > newest.seq {
			newest = &h
		}
	}
	if newest == nil {
		return nil, errHeadFile
	}
	return newest, nil
}

// write remembers h. sync says that it must be on the disk; else it gets there
// beside the writer, whose commits would wait for the disk twice.
func (w *headFile) write(h head, now time.Time, sync bool) error {
	var b [slotUsed]byte
	binary.LittleEndian.PutUint64(b[:], uint64(h.seq))
	copy(b[8:], h.hash)
	binary.LittleEndian.PutUint32(b[slotUsed-4:], crc32.Checksum(b[:slotUsed-4], castagnoli))
	if _, err := w.f.WriteAt(b[:], h.seq%2*slotSize); err != nil {
		return err
	}
	w.dirty = true
	switch {
	case sync:
		return w.sync(now)
	case now.Sub(w.synced) < headSync:
		return nil
	}
	if w.syncing != nil {
		select {
		case err := <-w.syncing:
			if w.syncing = nil; err != nil {
				return err
			}
		default:
			return nil // a slow disk
		}
	}
	ended := make(chan error, 1)
	w.synced, w.dirty, w.syncing = now, false, ended
	go func() { ended <- w.f.Sync() }()
	return nil
}

// idle waits until nothing is synced any more.
func (w *headFile) idle() (err error) {
	if w.syncing != nil {
		err = <-w.syncing
		w.syncing = nil
	}
	return err
}

func (w *headFile) sync(now time.Time) error {
	if !w.dirty {
		return nil
	}
	w.synced, w.dirty = now, false
	return w.f.Sync()
}

func (w *headFile) close() error {
	return errors.Join(w.idle(), w.sync(time.Now()), w.f.Close())
}

// headLost says what is wrong with a database whose head is db, if the file
// remembers kept; nil if nothing is.
func headLost(db head, kept *head) error {
	switch {
	case kept == nil || db.seq > kept.seq:
		return nil // a new file, or a power cut that took the last heads
	case db.seq < kept.seq:
		return fmt.Errorf("the database has %d commits, and %d were acknowledged", db.seq, kept.seq)
	case db.hash != kept.hash:
		return fmt.Errorf("commit %d of the database is not the one that was acknowledged: it is an older copy", db.seq)
	}
	return nil
}

// The files beside a database.
const (
	headSuffix = "-head"
	sumsSuffix = "-sums"
	walSuffix  = "-wal"
	shmSuffix  = "-shm"
)
