package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// The scopes of tokens.
const (
	EventsRead        = "events:read"
	EventsWrite       = "events:write"
	AnalyticsRead     = "analytics:read"
	TenantsRead       = "tenants:read"
	TenantsWrite      = "tenants:write" // deploys, owners and uploads too
	PaymentsRead      = "payments:read"
	TokensWrite       = "tokens:write"       // lists and makes tokens with the scopes that it has itself
	FacilitatorSettle = "facilitator:settle" // the facilitator's HTTP face
)

// Scopes are all of them.
func Scopes() []string {
	return []string{EventsRead, EventsWrite, AnalyticsRead, TenantsRead, TenantsWrite, PaymentsRead, TokensWrite, FacilitatorSettle}
}

// Principal is who asks, and what they may ask for.
type Principal struct {
	Name   string // for the audit log: a token's id, or "operator"
	Scopes []string
}

// Operator may do everything: whoever has the data directory.
func Operator() Principal { return Principal{Name: "operator", Scopes: Scopes()} }

// Can reports whether p has a scope.
func (p Principal) Can(scope string) bool { return slices.Contains(p.Scopes, scope) }

// Token is a platform token; its secret is shown once and kept nowhere.
type Token struct {
	ID           string    `json:"id"` // tok_ + 16 hex
	Owner        string    `json:"owner,omitempty"`
	Prefix       string    `json:"prefix"` // the first characters of the secret, to recognise it by
	SecretSHA256 string    `json:"-"`      // 64 hex
	Scopes       []string  `json:"scopes"`
	Created      time.Time `json:"createdAt"`
	Expires      time.Time `json:"expiresAt,omitzero"` // zero: never
	Revoked      time.Time `json:"revokedAt,omitzero"` // zero: in use
}

// secretPrefix lets scanners of leaked secrets recognise ours.
const secretPrefix = "clawr_"

// NewToken makes a token with 256 random bits of secret. A zero expires never
// does.
func NewToken(scopes []string, now, expires time.Time) (secret string, t Token) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	secret = secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return secret, Token{ID: randomID("tok_"), Prefix: secret[:len(secretPrefix)+6], SecretSHA256: HashSecret(secret), Scopes: scopes,
		Created: now, Expires: expires}
}

// HashSecret is what is kept of a secret.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// TokenFinder finds a token in use by the SHA-256 (hex) of its secret. One
// that is unknown, expired or revoked is a clawr.CodeTokenMissing error.
type TokenFinder interface {
	TokenByHash(ctx context.Context, sha256 string) (Token, error)
}

// Bearer gives the Principal of a request with "Authorization: Bearer SECRET".
// Whatever is wrong with the secret, the answer is the same.
func Bearer(tokens TokenFinder, now func() time.Time) func(*http.Request) (Principal, error) {
	return func(r *http.Request) (Principal, error) {
		missing := &clawr.Error{Code: clawr.CodeTokenMissing, Message: "this needs a token that is known, and neither expired nor revoked",
			Fix: "send Authorization: Bearer TOKEN; clawr token create makes one"}
		scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		secret = strings.TrimSpace(secret)
		if !strings.EqualFold(scheme, "Bearer") || secret == "" || len(secret) > 200 || len(r.Header.Values("Authorization")) > 1 {
			return Principal{}, missing
		}
		hash := HashSecret(secret)
		t, err := tokens.TokenByHash(r.Context(), hash)
		switch {
		case clawr.CodeOf(err) == clawr.CodeTokenMissing || clawr.CodeOf(err) == clawr.CodeNotFound:
			return Principal{}, missing
		case err != nil:
			return Principal{}, err
		}
		if subtle.ConstantTimeCompare([]byte(hash), []byte(t.SecretSHA256)) != 1 || !t.Revoked.IsZero() || !t.Expires.IsZero() && !t.Expires.After(now()) {
			return Principal{}, missing
		}
		if t.Owner != "" {
			// An owner's token would have to be kept to the owner's tenants
			// everywhere; until it is, it opens nothing.
			return Principal{}, missing
		}
		return Principal{Name: t.ID, Scopes: t.Scopes}, nil
	}
}

// NewTokenRequest asks for a token.
type NewTokenRequest struct {
	Scopes []string `json:"scopes"`
	// ExpiresIn is how long it lasts, in seconds; 0 is for good.
	ExpiresIn int64 `json:"expiresIn,omitempty"`
}

// NewTokenAnswer is the only time that a secret is shown.
type NewTokenAnswer struct {
	Token
	Secret string `json:"secret"`
}

func (h *Handler) createToken(r *request) (any, error) {
	var in NewTokenRequest
	if err := r.decode(&in, false); err != nil {
		return nil, err
	}
	all := strings.Join(Scopes(), ", ")
	if len(in.Scopes) == 0 {
		return nil, &clawr.Error{Code: clawr.CodeBadRequest, Param: "scope", Message: "a token needs a scope", Fix: "--scope with one of " + all}
	}
	for _, s := range in.Scopes {
		if !slices.Contains(Scopes(), s) {
			return nil, &clawr.Error{Code: clawr.CodeBadRequest, Param: "scope", Message: fmt.Sprintf("there is no scope %q", printable(s)), Fix: "--scope with one of " + all}
		}
		if !r.By.Can(s) {
			return nil, &clawr.Error{Code: clawr.CodeScopeMissing, Param: "scope", Message: "a token cannot give the scope " + s + ", which it does not have itself", Fix: "ask the operator for it"}
		}
	}
	const century = 100 * 365 * 86400
	if in.ExpiresIn < 0 || in.ExpiresIn > century {
		return nil, &clawr.Error{Code: clawr.CodeBadRequest, Param: "expires", Message: "the token's life is not between a second and a century", Fix: "--expires 720h"}
	}
	slices.Sort(in.Scopes)
	now, expires := h.now().UTC().Truncate(time.Microsecond), time.Time{}
	if in.ExpiresIn > 0 {
		expires = now.Add(time.Duration(in.ExpiresIn) * time.Second)
	}
	secret, t := NewToken(slices.Compact(in.Scopes), now, expires)
	if err := h.Tokens.CreateToken(r.Context(), t, r.By.Name); err != nil {
		return nil, err
	}
	return NewTokenAnswer{t, secret}, nil
}

func (h *Handler) listTokens(r *request) (any, error) {
	list, err := h.Tokens.Tokens(r.Context())
	return tokenList{orEmpty(list)}, err
}

func (h *Handler) revokeToken(r *request) (any, error) {
	id := r.PathValue("id")
	return struct {
		ID string `json:"id"`
	}{id}, h.Tokens.RevokeToken(r.Context(), id, r.By.Name)
}

type tokenList struct {
	Tokens []Token `json:"tokens"`
}

// orEmpty makes JSON say [] where Go says nil.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
