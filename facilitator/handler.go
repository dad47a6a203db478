package facilitator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// DefaultWait is how long POST /settle waits for a block. The reference client
// gives up after 90 s.
const DefaultWait = 30 * time.Second

// The codes that only the HTTP face answers with.
const (
	CodePayload clawr.Code = "invalid_payload" // the protocol's word for a body that cannot be read
	CodeToken   clawr.Code = "unauthorized"
)

// Settler is the facilitator behind a Handler.
type Settler interface {
	Verify(context.Context, *x402.PaymentPayload, x402.Requirements) (x402.VerifyResponse, error)
	// SettleFor is idempotent by authorization: asking twice is asking once.
	SettleFor(context.Context, Request) (ledger.Outcome, error)
	Supported() x402.SupportedResponse
	// VerifyChannel and SettleChannel are for the scheme batch-settlement.
	VerifyChannel(context.Context, *x402.PaymentPayload, x402.Requirements) (x402.VerifyResponse, error)
	SettleChannel(context.Context, *x402.PaymentPayload, x402.Requirements) (x402.SettleResponse, error)
}

// Handler is a facilitator's face, as the reference SDK's HTTPFacilitatorClient
// expects it: POST /verify, POST /settle, GET /supported, and GET /health.
// Verdicts are answered with 200 whether good or bad; other statuses say that
// there is no verdict.
type Handler struct {
	Facilitator Settler
	// Authorize names who asks, by a token's id; nil lets everybody ask. Its
	// error is answered with the error's own status.
	Authorize func(*http.Request) (id string, err error)
	Wait      time.Duration // for a block in POST /settle; 0: DefaultWait
	Log       *slog.Logger  // nil: slog.Default
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/verify":
		h.post(w, r, h.verify)
	case "/settle":
		h.post(w, r, h.settle)
	case "/supported":
		h.get(w, r, func() []byte { s := h.Facilitator.Supported(); return s.JSON() })
	case "/health":
		h.get(w, r, func() []byte { return []byte(`{"status":"ok"}`) })
	default:
		h.fail(w, r, &clawr.Error{Code: clawr.CodeNotFound, Message: "a facilitator has no such path", Fix: "use POST /verify, POST /settle or GET /supported"})
	}
}

// answer is a verdict, ready to be written.
type answer struct {
	status int
	body   []byte
}

func (h *Handler) post(w http.ResponseWriter, r *http.Request, do func(*http.Request, string, []byte) (answer, error)) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, r, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: "this path takes POST", Fix: "send the request with POST"})
		return
	}
	id := ""
	if h.Authorize != nil {
		var err error
		if id, err = h.Authorize(r); err != nil {
			h.fail(w, r, err)
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, x402.MaxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			err = &clawr.Error{Code: clawr.CodeBodyTooLarge, Message: "the body has more than " + strconv.Itoa(x402.MaxBody) + " bytes", Fix: "send one payment and its requirements"}
		} else {
			err = &clawr.Error{Code: clawr.CodeBadRequest, Message: "the body could not be read", Fix: "send it again", Err: err}
		}
		h.fail(w, r, err)
		return
	}
	a, err := do(r, id, body)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	write(w, a)
}

func (h *Handler) get(w http.ResponseWriter, r *http.Request, body func() []byte) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		h.fail(w, r, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: "this path takes GET", Fix: "send the request with GET"})
		return
	}
	write(w, answer{http.StatusOK, body()})
}

func (h *Handler) verify(r *http.Request, _ string, body []byte) (answer, error) {
	q, err := x402.ParseRequest(body)
	if err != nil {
		v := x402.VerifyResponse{InvalidReason: CodePayload, InvalidMessage: messageOf(err)}
		return answer{http.StatusBadRequest, v.JSON()}, nil
	}
	verify := h.Facilitator.Verify
	if q.Requirements.Scheme == x402.SchemeChannel {
		verify = h.Facilitator.VerifyChannel
	}
	v, err := verify(r.Context(), &q.Payload, q.Requirements)
	if err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, v.JSON()}, nil
}

// settle is not cut short by a client that hangs up: once a transaction is
// signed, somebody has to see it through, and the same request gets its result.
func (h *Handler) settle(r *http.Request, id string, body []byte) (answer, error) {
	q, err := x402.ParseRequest(body)
	if err != nil {
		s := x402.SettleResponse{ErrorReason: CodePayload, ErrorMessage: messageOf(err)}
		return answer{http.StatusBadRequest, s.JSON()}, nil
	}
	wait := h.Wait
	if wait <= 0 {
		wait = DefaultWait
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), wait)
	defer cancel()
	if q.Requirements.Scheme == x402.SchemeChannel {
		s, err := h.Facilitator.SettleChannel(ctx, &q.Payload, q.Requirements)
		if err != nil {
			return answer{}, err
		}
		return answer{http.StatusOK, s.JSON()}, nil
	}
	out, err := h.Facilitator.SettleFor(ctx, Request{Payload: &q.Payload, Requirements: q.Requirements, RequestedBy: id})
	if err != nil {
		return answer{}, err
	}
	s := settleResponse(out)
	s.Payer = payer(&q.Payload)
	s.Network = q.Requirements.Network
	if q.Payload.Version == 1 {
		if name := x402.V1Name(s.Network); name != "" {
			s.Network = name
		}
	}
	return answer{http.StatusOK, s.JSON()}, nil
}

// settleResponse says in the protocol's words how a settlement stands. What is
// not known is pending: a server that is told anything else asks its buyer for
// a second payment.
func settleResponse(out ledger.Outcome) x402.SettleResponse {
	s := x402.SettleResponse{ErrorReason: out.Reason, ErrorMessage: out.Message, Transaction: out.Tx}
	switch out.State {
	case ledger.Settled:
		return x402.SettleResponse{Success: true, Transaction: out.Tx}
	case ledger.NotCharged:
		s.Transaction = ""
		if s.ErrorReason == "" {
			s.ErrorReason = x402.ReasonTransactionFailed
		}
	default:
		// An authorization that was consumed before it came here can not be
		// charged by this settlement any more, so it is not pending either.
		if out.Reason != x402.ReasonNonceUsed {
			s.ErrorReason = x402.ReasonPending
		}
	}
	return s
}

// payer is who signed p, or "" if that cannot be read.
func payer(p *x402.PaymentPayload) string {
	e, _ := x402.ParseExact(p.Payload)
	if e == nil {
		return ""
	}
	return e.Payer()
}

// fail answers what is no verdict. The body has neither isValid nor success,
// so that no client takes it for one.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok {
		e = &clawr.Error{Code: clawr.CodeInternal, Message: "internal error", Err: err}
	}
	status := e.HTTPStatus()
	if status >= 500 {
		log := h.Log
		if log == nil {
			log = slog.Default()
		}
		log.ErrorContext(r.Context(), "facilitator cannot answer", "path", r.URL.Path, "err", err)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	b, _ := json.Marshal(struct {
		Error   clawr.Code `json:"error"`
		Message string     `json:"message"`
		Fix     string     `json:"fix,omitempty"`
	}{e.Code, e.Message, e.Fix})
	write(w, answer{status, b})
}

func write(w http.ResponseWriter, a answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	w.Write(a.body)
}

// messageOf is what a stranger may read of err.
func messageOf(err error) string {
	if e, ok := errors.AsType[*clawr.Error](err); ok {
		return e.Message
	}
	return "internal error"
}

// CheckExposure refuses to serve a facilitator at listen, a host:port, where
// other machines reach it, if it would spend gas for any payee that anybody
// names: it needs a list of payees, or tokens.
func CheckExposure(listen string, allowPayTo, tokens bool) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "listen", Message: strconv.Quote(listen) + " is not an address to listen on", Fix: "--listen 127.0.0.1:4022", Err: err}
	}
	if allowPayTo || tokens || loopback(host) {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeUsage, Param: "allow-pay-to", Message: listen + " can be reached from other machines, and anybody could have any payment settled at your cost",
		Fix: "give --allow-pay-to 0x… for each payee, or make tokens, or --listen 127.0.0.1:4022"}
}
