package cloudflare

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/402claw/clawr"
)

// The codes of what can go wrong between clawr and Cloudflare.
const (
	CodeAuth      clawr.Code = "cloudflare_auth"
	CodeAccount   clawr.Code = "cloudflare_account_not_found"
	CodeNamespace clawr.Code = "cloudflare_namespace_not_found"
	CodeMissing   clawr.Code = "cloudflare_not_found"
	CodeTaken     clawr.Code = "cloudflare_name_taken"
	CodeInvalid   clawr.Code = "cloudflare_worker_invalid"
	CodeTooLarge  clawr.Code = "cloudflare_too_large"
	CodeLimited   clawr.Code = "cloudflare_rate_limited"
	CodeQuota     clawr.Code = "cloudflare_quota"
	CodeImport    clawr.Code = "cloudflare_import_failed"
	CodeAPI       clawr.Code = "cloudflare_api"
)

// The API's codes that clawr tells apart.
const (
	apiNoRoute       = 7003  // there is no such account
	apiNoDatabase    = 7404  // D1
	apiQuota         = 7406  // D1
	apiNameTaken     = 7502  // D1
	apiUnauthorized  = 9106  // no token that can be read
	apiForbidden     = 9109  // a token for something else
	apiAuth          = 10000 // a token that is wrong, or may not do this
	apiNoScript      = 10007
	apiNoKey         = 10009 // KV
	apiNoKV          = 10013
	apiTitleTaken    = 10014 // KV
	apiName          = 10016
	apiInvalid       = 10021
	apiTooLarge      = 10027
	apiConcurrent    = 10035
	apiTooMany       = 10037 // scripts
	apiNoKept        = 10057
	apiClass         = 10061
	apiNoSubdomain   = 10063
	apiNoHandlers    = 10068
	apiTagPre        = 10079 // a migration's old tag is not the Worker's
	apiNoService     = 10090
	apiNoTenant      = 10092
	apiNoNamespace   = 100119
	apiInternalLimit = 10429
)

// failure is a call that the API did not do, or did not answer.
type failure struct {
	Method, Path string
	Status       int // 0: there was no answer
	Problems     []Problem
	Ray          string // names the request to Cloudflare's support
	Cause        error
	base         string
}

// has reports whether the API gave one of these codes. Its codes are more
// telling than its statuses.
func (f *failure) has(codes ...int) bool {
	return slices.ContainsFunc(f.Problems, func(p Problem) bool { return slices.Contains(codes, p.Code) })
}

// missing reports whether f says that there is no such thing, rather than no
// such account or namespace for it to be in.
func (f *failure) missing() bool {
	if f.Status/100 != 4 {
		return false // 10013 is an unknown error of one product, and a missing namespace of another
	}
	if f.has(apiNoScript, apiNoKey, apiNoKV, apiNoService, apiNoTenant, apiNoDatabase, apiNoNamespace) {
		return true
	}
	return f.Status == http.StatusNotFound && !f.has(apiNoRoute) && len(f.Problems) > 0
}

// passing reports whether the same call may succeed later.
func (f *failure) passing() bool {
	return f.Status == 0 || f.Status == http.StatusTooManyRequests || f.Status >= 500 || f.has(apiConcurrent)
}

// short is what went wrong, on one line and without control characters.
func (f *failure) short() string {
	switch {
	case f.Cause != nil:
		return fmt.Sprintf("%s %s got no answer: %v", f.Method, f.Path, f.Cause)
	case len(f.Problems) == 0:
		return fmt.Sprintf("%s %s was answered %d %s", f.Method, f.Path, f.Status, http.StatusText(f.Status))
	}
	var all []string
	for _, p := range f.Problems {
		all = append(all, fmt.Sprintf("%s (%d)", printable(p.Message), p.Code))
	}
	return strings.Join(all, "; ")
}

func (f *failure) Error() string {
	s := f.short()
	if f.Ray != "" {
		s += ", Cf-Ray " + printable(f.Ray)
	}
	return s
}

// printable is a stranger's text on one line, cut to what a person reads.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if len(s) > 1000 {
		s = strings.ToValidUTF8(s[:1000], "") + "…"
	}
	return s
}

// explain turns a failure of the API into an error with a code and a fix; what
// says what was being done.
func explain(err error, what string) error {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return err
	}
	e := &clawr.Error{Message: what, Err: f}
	switch {
	case f.Status == 0:
		e.Code, e.Fix = clawr.CodeUnreachable, "check the connection to "+f.base+" and run the same command again: it goes on where it stopped"
	case f.has(apiNoRoute):
		e.Code, e.Fix = CodeAccount, "check CLOUDFLARE_ACCOUNT_ID: it is in the address of the account's dashboard"
	case f.has(apiNoSubdomain):
		e.Code, e.Fix = CodeMissing, "open Workers & Pages in the dashboard once, which makes the account's workers.dev subdomain, or give --route"
	case f.has(apiUnauthorized, apiForbidden, apiAuth) || f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden:
		e.Code = CodeAuth
		e.Fix = "check CLOUDFLARE_ACCOUNT_ID and that CLOUDFLARE_API_TOKEN may edit Workers Scripts, Workers KV Storage and D1 of it (docs/cloudflare.md)"
	case f.has(apiNoNamespace):
		e.Code, e.Fix = CodeNamespace, "check --dispatch-namespace; clawr cloudflare-deploy-dispatcher --execute makes one that is missing"
	case f.has(apiTooLarge) || f.Status == http.StatusRequestEntityTooLarge:
		e.Code, e.Fix = CodeTooLarge, "publish less: a Worker may have 10 MB, compressed"
	case f.Status == http.StatusTooManyRequests:
		e.Code, e.Fix = CodeLimited, "wait five minutes and run the same command again: it goes on where it stopped"
	case f.has(apiTooMany, apiQuota):
		e.Code, e.Fix = CodeQuota, "remove what is not needed any more (clawr rm T --publish), or ask Cloudflare for more"
	case f.has(apiNameTaken, apiTitleTaken):
		e.Code, e.Fix = CodeTaken, "run the same command again, or use another --dispatch-namespace"
	case f.has(apiName, apiInvalid, apiNoKept, apiClass, apiNoHandlers, apiTagPre, 10006, 10026, 10052, 10054, 10055, 10056, 10123, 100402, 100405, 100406):
		e.Code, e.Fix = CodeInvalid, "the old version still serves; report this with the message if the Worker is clawr's own"
	case f.missing():
		e.Code, e.Fix = CodeMissing, "clawr cloudflare-status shows what is there"
	case f.passing():
		e.Code, e.Fix = CodeAPI, "run the same command again in a minute: it goes on where it stopped"
	default:
		e.Code, e.Fix = CodeAPI, "clawr cloudflare-status shows what is there; the old version still serves"
	}
	return e
}
