package buyer

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// lockCall makes the caller the only one that works on a call, until unlock.
// A process that ends, however it ends, leaves the call to the next.
func (w *Wallet) lockCall(ctx context.Context, call string) (unlock func(), err error) {
	return lockFile(ctx, w.path(lockFolder, call))
}

func (w *Wallet) openPath(call string) string { return w.path(openFolder, call+".json") }

// find is the open payment of a call, or nil. One that cannot be read is an
// error: it may be charged at any moment, so another must not be signed.
func (w *Wallet) find(call string) (*Payment, error) {
	path := w.openPath(call)
	b, err := readFile(path)
	if b == nil || err != nil {
		return nil, err
	}
	p, err := decodePayment(b)
	if err == nil && p.Call != call {
		err = errors.New("it belongs to another call")
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	return p, nil
}

// open counts amount against the limits, has sign make the payment, and writes
// it down. When it returns without an error the payment is on the disk, and
// may be sent; when it returns one, nothing signed leaves this function.
func (w *Wallet) open(ctx context.Context, id, call string, amount clawr.Amount, sign func() (*Payment, error)) (*Payment, error) {
	l, err := w.Limits()
	if err != nil {
		return nil, err
	}
	var p *Payment
	err = w.withSpend(ctx, func(s *spend) error {
		if err := w.forget(s); err != nil {
			return err
		}
		day := dayOf(w.now())
		deposited, drawn, err := w.today(day)
		if err != nil {
			return err
		}
		return s.take(id, call, day, amount, max(deposited, drawn), l)
	}, func() error {
		if p, err = sign(); err != nil {
			return err
		}
		return w.save(p)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// forget gives back what was counted for payments that were never written
// down: the process ended between the two, and nothing was sent. open does
// both under one lock, and close uncounts before it removes, so that there is
// no other way for the file to be missing.
func (w *Wallet) forget(s *spend) error {
	for id, h := range s.Held {
		p, err := w.find(h.Call)
		if err != nil && clawr.CodeOf(err) != CodeBadWallet {
			return err
		}
		if err == nil && (p == nil || p.ID != id) {
			s.giveBack(id)
		}
	}
	return nil
}

// save writes an open payment down.
func (w *Wallet) save(p *Payment) error {
	b, err := p.encode()
	if err != nil {
		return err
	}
	return writeFile(w.openPath(p.Call), b)
}

// close ends an open payment: its receipt is written, what it counted is kept
// or given back, and the open file goes last. A crash in between leaves the
// payment open, and closing it again does no harm.
func (w *Wallet) close(ctx context.Context, p *Payment, how Outcome, proof string) error {
	r := *p
	r.Outcome, r.Proof, r.Closed = how, proof, w.now().UTC()
	if how == Paid || how == NotCharged {
		r.Header, r.HeaderName = "", "" // no use any more, and a credential
	}
	b, err := r.encode()
	if err != nil {
		return err
	}
	if err := writeFile(w.recordPath(p), b); err != nil {
		return err
	}
	err = w.withSpend(ctx, func(s *spend) error {
		if how == NotCharged {
			s.giveBack(p.ID)
		} else {
			s.keep(p.ID)
		}
		return nil
	}, nil)
	if err != nil {
		return err
	}
	*p = r
	return removeFile(w.openPath(p.Call))
}

// recordPath is where p's receipt stands: by the time of its creation, so that
// they sort, and the same however often it is closed.
func (w *Wallet) recordPath(p *Payment) string {
	return w.path(recordFolder, p.Created.UTC().Format("2006-01-02T150405Z")+"-"+p.ID+".json")
}

// Open are the payments that may still be charged, or whose answer is still
// owed, oldest first. Damaged files are an error beside those that can be read.
func (w *Wallet) Open() ([]Payment, error) {
	names, err := list(w.path(openFolder))
	if err != nil {
		return nil, err
	}
	var out []Payment
	var bad []error
	for _, name := range names {
		p, err := w.find(strings.TrimSuffix(name, ".json"))
		if err != nil {
			bad = append(bad, err)
		} else if p != nil {
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(a, b Payment) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, errors.Join(bad...)
}

// Receipts are the last n payments that are over, newest first.
func (w *Wallet) Receipts(n int) ([]Payment, error) {
	names, err := list(w.path(recordFolder))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	slices.Reverse(names)
	var out []Payment
	for _, name := range names[:min(n, len(names))] {
		path := w.path(recordFolder, name)
		b, err := readFile(path)
		if err != nil {
			return nil, err
		}
		var p Payment
		if err := strict(b, &p); err != nil {
			return nil, damaged(path, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// list is the names of a folder's JSON files; a missing folder has none.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fileError(dir, err)
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".json" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// since is how long ago p was signed, for notes.
func (p *Payment) since(now time.Time) time.Duration { return now.Sub(p.Created).Round(time.Second) }
