package api

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Deploy is what goes on sale: a manifest, and the hosts that are the
// tenant's from now on. Without a list of hosts it keeps those that it has.
type Deploy struct {
	clawr.Manifest
	Hosts []string `json:"hosts"`
}

const (
	maxHosts = 20
	maxTags  = 5
)

var (
	ownerForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)
	contentForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (h *Handler) deploy(r *request) (any, error) {
	var in Deploy
	if err := r.decode(&in, false); err != nil {
		return nil, err
	}
	slug := r.PathValue("slug")
	if err := in.complete(slug); err != nil {
		return nil, err
	}
	ctx := r.Context()
	if err := h.payTo(ctx, slug, &in.Manifest); err != nil {
		return nil, err
	}
	if h.Segments != nil {
		switch ok, err := h.Segments.Has(ctx, in.Content); {
		case err != nil:
			return nil, err
		case !ok:
			return nil, refuse(clawr.CodeBadRequest, "content", "its data is not here", "clawr deploy FILE sends it first")
		}
	}
	return h.showing(h.Tenants.Deploy(ctx, clawr.Tenant{Slug: slug, Hosts: in.Hosts, Manifest: in.Manifest}, r.By.Name))
}

// payTo settles who earns: the request's address, the owner's, the one that
// the tenant had, or the node's own. There is no other default: money that
// goes to a wrong address is gone. It also remembers the tenant's network.
func (h *Handler) payTo(ctx context.Context, slug string, m *clawr.Manifest) error {
	if !m.X402 {
		m.PayTo = "" // a free API has none, so that it is nobody's ledger
		return nil
	}
	before, err := h.find(ctx, slug)
	if err != nil {
		return err
	}
	if before != nil && m.Network == "" {
		m.Network = before.Network
	}
	if m.PayTo != "" {
		return nil
	}
	owner, err := h.Owners.Owner(ctx, m.Owner)
	if err != nil && clawr.CodeOf(err) != clawr.CodeNotFound {
		return err
	}
	m.PayTo = owner.PayTo
	if m.PayTo == "" && before != nil && before.Owner == m.Owner {
		m.PayTo = before.PayTo
	}
	if m.PayTo == "" {
		m.PayTo = h.DefaultPayTo
	}
	if m.PayTo == "" {
		return refuse(clawr.CodePayToMissing, "pay-to", fmt.Sprintf("there is no address that earns: owner %q has none", m.Owner),
			"clawr owner set "+m.Owner+" --pay-to 0x…, or --pay-to 0x…")
	}
	return nil
}

// complete checks everything that can be checked without looking anywhere,
// and fills in what has a default.
func (d *Deploy) complete(slug string) error {
	if err := clawr.CheckSlug(slug); err != nil {
		return err
	}
	for _, check := range []func() error{d.checkKind, d.checkOwner, d.checkTexts, d.checkPrice, d.checkLimits, d.checkHosts} {
		if err := check(); err != nil {
			return err
		}
	}
	if d.WorkerName == "" {
		d.WorkerName = "tenant-" + slug
	}
	return nil
}

func refuse(code clawr.Code, param, message, fix string) error {
	return &clawr.Error{Code: code, Param: param, Message: message, Fix: fix}
}

func (d *Deploy) checkKind() error {
	if d.Kind == "" {
		d.Kind = clawr.KindDataset
	}
	if d.Kind != clawr.KindDataset {
		return refuse(clawr.CodeBadRequest, "kind", fmt.Sprintf("APIs of kind %q cannot be deployed yet", printable(string(d.Kind))), "deploy a dataset: clawr deploy FILE")
	}
	if !contentForm.MatchString(d.Content) {
		return refuse(clawr.CodeBadRequest, "content", "content is not the SHA-256 of a dataset", "clawr deploy FILE sends it")
	}
	if d.Rows < 0 {
		return refuse(clawr.CodeBadRequest, "rows", "rows is below 0", "clawr deploy FILE counts them")
	}
	switch ledger.Policy(d.Settle) {
	case "", ledger.SettleBeforeResponse, ledger.SettleFirst, ledger.Async:
	default:
		return refuse(clawr.CodeBadRequest, "settle", fmt.Sprintf("payments cannot be settled by the policy %q", printable(d.Settle)),
			"--settle settle_before_response, settle_first or async")
	}
	if err := clawr.CheckSchemes(d.Schemes); err != nil {
		return err
	}
	if d.Home != "" && d.Home != clawr.HomeEdge {
		return refuse(clawr.CodeBadRequest, "ledgerHome", fmt.Sprintf("nothing can be sold at %q", printable(string(d.Home))), "leave ledgerHome out, or edge")
	}
	if d.Plan == "" {
		d.Plan = clawr.PlanFree
	}
	return clawr.CheckPlan(d.Plan)
}

func (d *Deploy) checkOwner() error {
	d.Owner = strings.TrimPrefix(d.Owner, "@")
	if d.Owner == "" {
		d.Owner = "me"
	}
	return checkOwner(d.Owner)
}

func checkOwner(id string) error {
	if ownerForm.MatchString(id) {
		return nil
	}
	return refuse(clawr.CodeBadRequest, "owner", fmt.Sprintf("%q is not the id of an owner", printable(id)), "use letters, digits and inner . _ -, at most 64")
}

// checkTexts bounds what is shown on pages and in terminals. Texts are data,
// read by agents too: no control characters, and no formatting ones, which can
// hide or reorder what follows.
func (d *Deploy) checkTexts() error {
	if d.Directory == "" {
		d.Directory = "APIs"
	}
	texts := []struct {
		param, text string
		most        int
	}{{"directory", d.Directory, 64}, {"description", d.Description, 2000}, {"license", d.License, 200}, {"worker-name", d.WorkerName, 128}}
	for _, t := range d.Tags {
		texts = append(texts, struct {
			param, text string
			most        int
		}{"tag", t, 32})
	}
	for _, t := range texts {
		switch {
		case utf8.RuneCountInString(t.text) > t.most:
			return refuse(clawr.CodeBadRequest, t.param, fmt.Sprintf("--%s is longer than %d characters", t.param, t.most), "shorten it")
		case !utf8.ValidString(t.text) || strings.ContainsFunc(t.text, func(c rune) bool { return unicode.IsControl(c) || unicode.Is(unicode.Cf, c) }):
			return refuse(clawr.CodeBadRequest, t.param, fmt.Sprintf("--%s has control or invisible characters", t.param), "write it as one line of plain text")
		}
	}
	if len(d.Tags) > maxTags || slices.Contains(d.Tags, "") {
		return refuse(clawr.CodeBadRequest, "tag", fmt.Sprintf("at most %d tags, none of them empty", maxTags), "leave some --tag out")
	}
	return nil
}

func (d *Deploy) checkPrice() error {
	if d.Price < 0 || d.Price > clawr.MaxPrice || d.X402 && d.Price == 0 {
		return refuse(clawr.CodeBadAmount, "price", fmt.Sprintf("a price of $%s cannot be asked for: it is from 0.000001 to %s", d.Price, clawr.MaxPrice), "--price 0.001, or no --x402 for a free API")
	}
	if d.PayTo != "" {
		a, err := clawr.CheckAddress(d.PayTo)
		if err != nil {
			return refuse(clawr.CodeBadAddress, "pay-to", fmt.Sprintf("%q is not an address", printable(d.PayTo)), "--pay-to with 0x and 40 hexadecimal digits, not all zero")
		}
		d.PayTo = a
	}
	if d.Network != "" {
		if err := clawr.CheckNetwork(d.Network); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		param string
		cap   clawr.Amount
	}{{"spend-day", d.Spend.Daily}, {"spend-month", d.Spend.Monthly}} {
		if c.cap < 0 || c.cap > clawr.MaxPrice {
			return refuse(clawr.CodeBadAmount, c.param, fmt.Sprintf("--%s $%s is not between 0 and %s", c.param, c.cap, clawr.MaxPrice), "leave --"+c.param+" out for no cap")
		}
		if c.cap > 0 && d.X402 && c.cap < d.Price {
			return refuse(clawr.CodeBadAmount, c.param, fmt.Sprintf("--%s $%s is below the price of one call, $%s: nobody could buy any", c.param, c.cap, d.Price), "--"+c.param+" "+d.Price.String()+" or more")
		}
	}
	return nil
}

func (d *Deploy) checkLimits() error {
	for _, n := range []struct {
		param   string
		v, most int64
	}{
		{"cpu-ms", d.Limits.CPUMs, 300_000}, {"subrequests", d.Limits.SubRequests, 10_000},
		{"quota-day", d.Usage.Daily, 1e15}, {"quota-month", d.Usage.Monthly, 1e15},
	} {
		if n.v < 0 || n.v > n.most {
			return refuse(clawr.CodeBadRequest, n.param, fmt.Sprintf("--%s %d is not between 0 and %d", n.param, n.v, n.most), "leave --"+n.param+" out for the default")
		}
	}
	for _, r := range []struct {
		param string
		rate  clawr.Rate
	}{{"rate-limit-caller", d.Rate.PerCaller}, {"rate-limit-global", d.Rate.Global}} {
		if r.rate == (clawr.Rate{}) {
			continue
		}
		if q := r.rate; q.Requests <= 0 || q.Requests > 1e9 || q.WindowSeconds <= 0 || q.WindowSeconds > 86400 || q.Burst < 0 || q.Burst > 1e9 {
			return refuse(clawr.CodeBadRequest, r.param, fmt.Sprintf("--%s is not a rate of 1 to 1e9 requests in 1 s to 24 h", r.param), "--"+r.param+" 100/60s")
		}
	}
	return nil
}

func (d *Deploy) checkHosts() error {
	if len(d.Hosts) > maxHosts {
		return refuse(clawr.CodeBadHost, "host", fmt.Sprintf("%d hosts are more than %d", len(d.Hosts), maxHosts), "leave some --host out")
	}
	for _, host := range d.Hosts {
		if err := clawr.CheckHost(host); err != nil {
			return err
		}
	}
	if d.Hosts != nil {
		slices.Sort(d.Hosts)
		d.Hosts = slices.Compact(d.Hosts)
	}
	return nil
}

// maxSegment bounds an upload.
const maxSegment = 4 << 30

func (h *Handler) putSegment(r *request) (any, error) {
	id := r.PathValue("sha256")
	if !contentForm.MatchString(id) || h.Segments == nil {
		return nil, refuse(clawr.CodeBadRequest, "sha256", "a segment is named by the SHA-256 of its bytes, 64 lower-case hex digits", "clawr deploy FILE --server URL sends it")
	}
	there, err := h.Segments.Has(r.Context(), id)
	if err == nil && !there {
		err = h.Segments.Put(r.Context(), id, http.MaxBytesReader(r.w, r.Body, maxSegment))
	}
	return struct {
		SHA256 string `json:"sha256"`
	}{id}, err
}
