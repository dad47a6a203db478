package cloudflare

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// Publisher plans changes of one account, and remembers what it uploaded.
type Publisher struct {
	API   *Client // nil: nothing can be looked up, so that a plan assumes an empty account
	Shelf Shelf
	Now   func() time.Time
}

// The tags by which clawr knows its Workers. A Worker without the first is
// somebody else's, and left alone.
const (
	tagOurs      = "clawr"
	tagNamespace = "clawr-namespace-"
	tagTenant    = "clawr-tenant-"
	tagBundle    = "clawr-bundle-"
	tagSecrets   = "clawr-secrets-"
)

// What stands beside a dispatch namespace, by name.
func directoryTitle(namespace string) string { return "clawr-directory-" + namespace }
func eventsName(namespace string) string     { return "clawr-events-" + namespace }

// The name of what only exists once the plan is carried out.
const unknownID = "(made by --execute)"

// resource is something that is found by name or made, and its id.
type resource struct{ id string }

// directory plans that the KV namespace of the directory is there.
func (p *Publisher) directory(ctx context.Context, plan *Plan, namespace string) (*resource, error) {
	title := directoryTitle(namespace)
	r := &resource{}
	if p.API != nil {
		var err error
		if r.id, err = p.API.kv(ctx, title); err != nil {
			return nil, err
		}
	}
	if r.id != "" {
		plan.keep("KV namespace "+title, r.id)
		return r, nil
	}
	plan.add("create", "KV namespace "+title, "", func(ctx context.Context) (err error) {
		r.id, err = p.API.createKV(ctx, title)
		return err
	})
	return r, nil
}

func (p *Publisher) database(ctx context.Context, plan *Plan, name string) (*resource, error) {
	r := &resource{}
	if p.API != nil {
		var err error
		if r.id, err = p.API.database(ctx, name); err != nil {
			return nil, err
		}
	}
	if r.id != "" {
		plan.keep("D1 database "+name, r.id)
		return r, nil
	}
	plan.add("create", "D1 database "+name, "", func(ctx context.Context) (err error) {
		r.id, err = p.API.createDatabase(ctx, name)
		return err
	})
	return r, nil
}

func (r *resource) String() string {
	if r.id == "" {
		return unknownID
	}
	return r.id
}

// tags are those of a Worker that is uploaded now.
func tags(hash, secrets string, more ...string) []string {
	return append([]string{tagOurs, tagBundle + hash[:32], tagSecrets + secrets}, more...)
}

// unchanged reports whether what is there is what would be uploaded.
func (d *deployed) unchanged(hash, secrets string) bool {
	return d.has(tagBundle+hash[:32]) && d.has(tagSecrets+secrets)
}

// NewSecret is 32 random bytes in hex.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// State is what a dispatcher's ledger must know of a tenant at once, because
// the directory lags.
type State struct {
	ID         string       `json:"id"`
	Slug       string       `json:"slug"` // whose directory entry the isolate that is told forgets
	Revision   int64        `json:"revision"`
	Status     clawr.Status `json:"status"`
	LedgerHome string       `json:"ledgerHome"`
}

// Edge is where a dispatcher answers, and the platform token that it
// takes orders by. Without a URL there is none yet.
type Edge struct {
	URL   string
	Token string
}

// tellFor is how long a dispatcher that was just deployed may take to answer.
const tellFor = 60 * time.Second

// tell has the dispatcher's ledger know s.
func (p *Publisher) tell(ctx context.Context, e Edge, s State) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tellFor)
	defer cancel()
	fail := func(why string) error {
		return &clawr.Error{Code: clawr.CodeUnreachable, Message: "the dispatcher at " + e.URL + " was not told: " + why,
			Fix: "check that it is deployed (clawr cloudflare-status), then run the same command again"}
	}
	last := "it did not answer"
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL+"/__platform/tenants", bytes.NewReader(body))
		if err != nil {
			return fail("its URL is none")
		}
		req.Header.Set("Authorization", "Bearer "+e.Token)
		req.Header.Set("Content-Type", "application/json")
		res, err := p.API.http().Do(req)
		if err == nil {
			b, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
			res.Body.Close()
			switch {
			case res.StatusCode/100 == 2:
				return nil
			case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
				return &clawr.Error{Code: CodeAuth, Message: "the dispatcher at " + e.URL + " does not know this clawr's platform token",
					Fix: "clawr cloudflare-deploy-dispatcher --execute from this data directory, which gives it the token, then run the same command again"}
			}
			last = fmt.Sprintf("it answered %d %s", res.StatusCode, printable(strings.TrimSpace(string(b[:min(len(b), 200)]))))
		} else {
			last = "it cannot be reached"
		}
		if serr := p.API.sleep(ctx, 2*time.Second); serr != nil {
			return fail(last)
		}
	}
}
