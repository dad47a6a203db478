package dataset

import (
	"crypto/sha256"
	"encoding/binary"
	"os"

	"github.com/402claw/clawr"
)

// Verify reads a whole file that somebody else has written, and reports
// whether it is the segment that id names: the id is the hash of its table,
// and the table has the hash of each section. What is opened from this
// machine's own disk is only compared with its checksums.
func Verify(path, id string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return &clawr.Error{Code: clawr.CodeFile, Status: 500, Message: "the dataset's segment cannot be opened: " + cause(err), Fix: "deploy the file again", Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < int64(len(magic)+trailerSize) || st.Size() > 1<<46 {
		return corrupt("it has %d bytes", st.Size())
	}
	data, err := mapFile(f, int(st.Size()))
	if err != nil {
		return &clawr.Error{Code: clawr.CodeFile, Status: 500, Message: "the dataset's segment cannot be mapped: " + cause(err), Err: err}
	}
	defer func() {
		if merr := unmapFile(data); err == nil {
			err = merr
		}
	}()
	s := &Segment{data: data, key: -1}
	if err := s.load(id, true); err != nil {
		return err
	}
	count := int(binary.LittleEndian.Uint32(data[len(data)-trailerSize:]))
	table := data[len(data)-trailerSize-count*entrySize : len(data)-trailerSize]
	for e := table; len(e) > 0; e = e[entrySize:] {
		off, size := binary.LittleEndian.Uint64(e[8:]), binary.LittleEndian.Uint64(e[16:])
		if sha256.Sum256(data[off:off+size]) != [sha256.Size]byte(e[24:entrySize]) {
			return corrupt("section %d of column %d does not have its hash", binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint16(e[2:]))
		}
	}
	return nil
}
