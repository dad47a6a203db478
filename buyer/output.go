package buyer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
)

// errChanged is what an answer fails with that is not the one whose beginning
// was handed on already.
var errChanged = errors.New("the answer to the same payment changed after its beginning was written")

// output hands an answer on as it comes, over several attempts: when an answer
// is cut, the server is asked for the same one again, and what was written is
// compared and skipped instead of written twice.
type output struct {
	w   io.Writer // nil discards
	n   int64     // bytes written
	sum hash.Hash // of them
	// failed is set if w would take no more. The payment is in order then.
	failed error
}

// copy writes what r has beyond what was written already.
func (o *output) copy(r io.Reader) error {
	if o.sum == nil {
		o.sum = sha256.New()
	}
	if o.n > 0 {
		again := sha256.New()
		switch _, err := io.CopyN(again, r, o.n); {
		case errors.Is(err, io.EOF):
			return errChanged
		case err != nil:
			return err
		case !bytes.Equal(again.Sum(nil), o.sum.Sum(nil)):
			return errChanged
		}
	}
	_, err := io.Copy(writer{o}, r)
	return err
}

// writer is output's way out, which remembers whose fault an error was.
type writer struct{ o *output }

func (w writer) Write(b []byte) (n int, err error) {
	n = len(b)
	if w.o.w != nil {
		n, err = w.o.w.Write(b)
	}
	w.o.sum.Write(b[:n])
	w.o.n += int64(n)
	w.o.failed = err
	return n, err
}
