package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Worker does the work of one version of one tenant.
type Worker interface {
	// Plan is pure. It gives the canonical form of the request (equal for equal
	// questions), and the units that it costs: 0 is a free route. Its error is
	// what the request is answered with once it is known not to be charged.
	Plan(*http.Request) (canonical string, units int64, err error)
	// Check says whether what is asked for exists, before money is reserved.
	Check(context.Context, *http.Request) error
	// Serve answers, or returns an error and has written nothing.
	Serve(http.ResponseWriter, *http.Request) error
}

// Recomputer is a Worker whose answers are pure functions of the canonical
// request, so that the book stores that and not the bytes.
type Recomputer interface {
	// Answer gives the body that Serve wrote for canonical, byte for byte.
	Answer(ctx context.Context, canonical string) ([]byte, error)
}

// Tagger is a Worker that knows an answer's strong ETag without computing the
// answer.
type Tagger interface {
	ETag(canonical string) string
}

// Describer is a Worker that says how one of its routes is asked, for those who
// list APIs.
type Describer interface {
	// Discovery gives the bazaar extension of the challenges of a path.
	Discovery() (path string, bazaar json.RawMessage, err error)
}

// Workers opens what does the work.
type Workers interface {
	// Open gives the worker of t's version. It may be called often.
	Open(ctx context.Context, t *clawr.Tenant) (Worker, error)
}

// opened is a worker with the optional interfaces that it has. It is somebody
// else's code: none of its panics get past it.
type opened struct {
	Worker
	recompute Recomputer // may be nil
	tag       Tagger     // may be nil
	describe  Describer  // may be nil
}

func newOpened(w Worker) *opened {
	o := &opened{Worker: w}
	o.recompute, _ = w.(Recomputer)
	o.tag, _ = w.(Tagger)
	o.describe, _ = w.(Describer)
	return o
}

// panicked is a worker's panic as an error, for the log.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("worker panicked: %v\n%s", p.value, p.stack) }

// rescue makes a worker's panic its error.
func rescue(err *error) {
	if p := recover(); p != nil {
		*err = &panicked{p, debug.Stack()}
	}
}

func (o *opened) Plan(r *http.Request) (canonical string, units int64, err error) {
	defer rescue(&err)
	return o.Worker.Plan(r)
}

func (o *opened) Check(ctx context.Context, r *http.Request) (err error) {
	defer rescue(&err)
	return o.Worker.Check(ctx, r)
}

func (o *opened) Serve(w http.ResponseWriter, r *http.Request) (err error) {
	defer rescue(&err)
	return o.Worker.Serve(w, r)
}

func (o *opened) answer(ctx context.Context, canonical string) (body []byte, err error) {
	if o.recompute == nil {
		return nil, errors.New("a stored answer has nobody to recompute it")
	}
	defer rescue(&err)
	return o.recompute.Answer(ctx, canonical)
}

// discovery is what a worker says of itself; what it cannot say is left out.
func (o *opened) discovery() (path string, bazaar json.RawMessage, err error) {
	if o == nil || o.describe == nil {
		return "", nil, nil
	}
	defer rescue(&err)
	return o.describe.Discovery()
}

// told reports whether err is meant for strangers. What a worker says of its
// own files is not.
func told(err error) bool {
	e, ok := errors.AsType[*clawr.Error](err)
	return ok && e.HTTPStatus() != http.StatusInternalServerError && e.Code != clawr.CodeFile && e.Code != clawr.CodeSegmentCorrupt
}

// failed is what a caller is told of a worker's error: its own words if they
// are meant for strangers, else nothing, and then the log has them.
func (d *Dispatcher) failed(ctx context.Context, c *call, err error) error {
	if told(err) {
		return err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return d.bodyTooLarge()
	}
	d.Log.ErrorContext(ctx, "worker failed", "requestId", c.ev.RequestID, "tenant", c.e.Slug, "err", err)
	return &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the API failed; you were not charged", Fix: "try again later", Err: err}
}

// buffer is the bounded response that the work of a paid call is written to:
// nothing of it reaches the client before the money is settled.
type buffer struct {
	header http.Header
	status int
	body   []byte
	limit  int64
	over   bool
}

func (b *buffer) Header() http.Header { return b.header }

func (b *buffer) WriteHeader(status int) {
	if b.status == 0 && status >= 200 { // 1xx come before the answer
		b.status = status
	}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	if int64(len(b.body)+len(p)) > b.limit {
		b.over = true
		return 0, errors.New("dispatch: the answer is too large")
	}
	b.body = append(b.body, p...)
	return len(p), nil
}

// grace is how much longer than its time a worker is waited for, so that one
// that heeds its context can say so itself.
const grace = 100 * time.Millisecond

// work has the worker answer into a bounded buffer.
func (d *Dispatcher) work(ctx context.Context, c *call) (*ledger.Answer, error) {
	limit := d.MaxAnswer
	if limit <= 0 {
		limit = 64 << 20
	}
	// The work gets what the deadline leaves when the settlement's share is
	// taken off: a slow worker must not eat the settlement's time.
	wctx, cancel := context.WithTimeout(ctx, d.deadline()*2/3)
	defer cancel()
	buf := &buffer{header: http.Header{}, limit: limit}
	worker, r := c.worker, c.Request.WithContext(wctx)
	ended := make(chan error, 1)
	go func(w http.ResponseWriter) { // its own buffer: ours may be another by then
		err := errors.New("the worker ended its goroutine")
		defer func() { ended <- err }()
		err = worker.Serve(w, r)
	}(buf)
	var err error
	select {
	case err = <-ended:
	case <-wctx.Done():
		select {
		case err = <-ended:
		case <-time.After(grace):
			// It does not heed its context. It is left behind with its buffer: it
			// may hang, but the buyer's payment must not hang with it. It goes on
			// counting as a call in work, so that there is an end to their number.
			err, buf = wctx.Err(), &buffer{}
			d.inFlight.Add(1)
			c.e.inFlight.Add(1)
			go func() {
				<-ended
				d.inFlight.Add(-1)
				c.e.inFlight.Add(-1)
			}()
		}
	}
	switch {
	case err != nil && wctx.Err() != nil && !told(err):
		return nil, &clawr.Error{Code: clawr.CodeWorkerTimeout, Message: "the API took too long; you were not charged", Fix: "ask for less, or try again later", Err: err}
	case buf.over:
		return nil, &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the answer is too large; you were not charged", Fix: "ask for less"}
	case err != nil:
		return nil, d.failed(ctx, c, err)
	case buf.status >= 400:
		return nil, d.failed(ctx, c, fmt.Errorf("it answered %d", buf.status))
	}
	a := &ledger.Answer{Status: max(buf.status, http.StatusOK), Body: buf.body, SHA256: hashHex(buf.body), Len: int64(len(buf.body))}
	for _, k := range slices.Sorted(maps.Keys(buf.header)) {
		name := http.CanonicalHeaderKey(k)
		if ours(name) {
			continue
		}
		for _, v := range buf.header[k] {
			a.Headers = append(a.Headers, [2]string{name, v})
		}
	}
	if worker.recompute != nil && idempotent(c.Method) && a.Status == http.StatusOK {
		a.Ref = c.canonical
	}
	return a, nil
}
