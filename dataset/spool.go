package dataset

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// regular is a file on a disk that is read from its beginning.
type regular struct {
	f interface {
		io.ReaderAt
		Stat() (fs.FileInfo, error)
	}
	size  int64
	mtime time.Time
}

// plainFile knows r as such a file; nil if it is a pipe, a connection or bytes.
func plainFile(r io.Reader) *regular {
	f, ok := r.(interface {
		io.ReaderAt
		io.Seeker
		Stat() (fs.FileInfo, error)
	})
	if !ok {
		return nil
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		return nil
	}
	return &regular{f: f, size: st.Size(), mtime: st.ModTime()}
}

// unchanged fails if somebody wrote to the file since it was opened: what was
// read may be half of the old and half of the new.
func (r *regular) unchanged() error {
	if r == nil {
		return nil
	}
	st, err := r.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != r.size || !st.ModTime().Equal(r.mtime) {
		return &clawr.Error{Code: CodeFileChanged, Message: "the file changed while it was read", Fix: "wait until it is written, or give a copy of it"}
	}
	return nil
}

// parquet settles whether the file is Parquet: by option, by name, or by its
// magic. The byte after that begins a page or the footer, and none of a text.
func (s *source) parquet(name string, o *Options) error {
	head, err := s.r.Peek(5)
	if err != nil && err != io.EOF {
		return err
	}
	known := len(head) == 5 && (string(head[:4]) == "PAR1" || string(head[:4]) == "PARE")
	switch format := strings.ToLower(o.Format); {
	case format != "" && format != "parquet":
		return nil
	case format == "parquet" || formatOf(name) == "parquet":
		if !known {
			return badParquet("it does not begin as one", nil)
		}
	case !known || head[4] >= ' ' || bytes.IndexByte([]byte("\t\r\n"), head[4]) >= 0:
		return nil
	}
	s.format = "parquet"
	return nil
}

// readParquet reads a file in place, if it is one, else it puts what comes
// aside first: Parquet begins at its end.
func (s *source) readParquet(ctx context.Context, file *regular, dir string, progress func(int64, int)) (*table, error) {
	if file != nil && !s.packed {
		if file.size > s.limit {
			return nil, tooLarge(s.limit)
		}
		s.count.n = 0
		t, err := readParquet(ctx, file.f, file.size, s.limit, progress)
		s.count.n = file.size
		return t, err
	}
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, writeError(err)
	}
	_ = os.Remove(f.Name()) // where that is possible, so that a kill leaves nothing
	defer os.Remove(f.Name())
	defer f.Close()
	size, err := s.spool(ctx, f, progress)
	if err != nil {
		return nil, err
	}
	return readParquet(ctx, f, size, s.limit, func(_ int64, rows int) { progress(s.count.n, rows) })
}

func (s *source) spool(ctx context.Context, f *os.File, progress func(int64, int)) (size int64, err error) {
	b := make([]byte, 1<<18)
	for {
		n, err := s.r.Read(b)
		if _, werr := f.Write(b[:n]); werr != nil {
			return 0, writeError(werr)
		}
		size += int64(n)
		if err == io.EOF {
			return size, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, err
		}
		progress(s.count.n, 0)
	}
}
