package api

import (
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
)

func TestScopesAreNeededEverywhere(t *testing.T) {
	w := newWorld(t)
	w.as = nil
	for _, c := range []struct{ method, path, scope string }{
		{"GET", "/v1/tenants", TenantsRead}, {"GET", "/v1/tenants/x", TenantsRead}, {"GET", "/v1/tenants/x/versions", TenantsRead},
		{"DELETE", "/v1/tenants/x", TenantsWrite}, {"POST", "/v1/tenants/x/deploys", TenantsWrite}, {"POST", "/v1/tenants/x/pause", TenantsWrite},
		{"POST", "/v1/tenants/x/resume", TenantsWrite}, {"POST", "/v1/tenants/x/rollback", TenantsWrite},
		{"GET", "/v1/owners", TenantsRead}, {"GET", "/v1/owners/x", TenantsRead}, {"PUT", "/v1/owners/x", TenantsWrite},
		{"GET", "/v1/tokens", TokensWrite}, {"POST", "/v1/tokens", TokensWrite}, {"DELETE", "/v1/tokens/x", TokensWrite},
		{"GET", "/v1/events", EventsRead}, {"POST", "/v1/events", EventsWrite}, {"GET", "/v1/analytics", AnalyticsRead},
		{"GET", "/v1/payments", PaymentsRead}, {"GET", "/v1/payments/x", PaymentsRead}, {"GET", "/v1/directory", TenantsRead},
		{"PUT", "/v1/segments/x", TenantsWrite}, {"GET", "/v1/channels", PaymentsRead}, {"POST", "/v1/channels/claim", FacilitatorSettle},
	} {
		status, h, got := w.call(c.method, c.path, "")
		if status != 401 || got["error"] != "token_missing" || !strings.HasPrefix(h.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s %s without a token: %d %v %v", c.method, c.path, status, got, h)
		}
		others := slices.DeleteFunc(Scopes(), func(s string) bool { return s == c.scope })
		secret, token := NewToken(others, w.now, time.Time{})
		if err := w.db.CreateToken(t.Context(), token, "test"); err != nil {
			t.Fatal(err)
		}
		status, h, got = w.call(c.method, c.path, "", "Authorization", "Bearer "+secret)
		if status != 403 || got["error"] != "scope_missing" || !strings.Contains(got["message"].(string), c.scope) || h.Get("WWW-Authenticate") == "" {
			t.Errorf("%s %s with all other scopes: %d %v, want 403 that names %s", c.method, c.path, status, got, c.scope)
		}
		secret, token = NewToken([]string{c.scope}, w.now, time.Time{})
		if err := w.db.CreateToken(t.Context(), token, "test"); err != nil {
			t.Fatal(err)
		}
		if status, _, got = w.call(c.method, c.path, "", "Authorization", "bearer  "+secret); status == 401 || status == 403 || status == 500 {
			t.Errorf("%s %s with %s: %d %v", c.method, c.path, c.scope, status, got)
		}
	}
}

func TestTokensThatOpenNothing(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	made, err := w.Client.CreateToken(ctx, NewTokenRequest{Scopes: []string{EventsRead, TenantsRead, EventsRead}, ExpiresIn: 60})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Secret) != 49 || !strings.HasPrefix(made.Secret, made.Prefix) || len(made.Prefix) != 12 || strings.Join(made.Scopes, " ") != "events:read tenants:read" || made.Expires.Sub(w.now) != time.Minute {
		t.Errorf("%+v", made)
	}
	list, err := w.Client.Tokens(ctx)
	if err != nil || len(list) != 1 || list[0].ID != made.ID || list[0].SecretSHA256 != "" {
		t.Errorf("%+v, %v", list, err)
	}
	w.as = nil
	status := func(header ...string) int {
		code, _, _ := w.call("GET", "/v1/tenants", "", header...)
		return code
	}
	good := "Bearer " + made.Secret
	if got := status("Authorization", good); got != 200 {
		t.Errorf("the token itself: %d", got)
	}
	for name, header := range map[string][]string{
		"nothing": nil, "an empty one": {"Authorization", "Bearer "}, "another scheme": {"Authorization", "Basic " + made.Secret},
		"the bare secret": {"Authorization", made.Secret}, "a changed one": {"Authorization", good[:len(good)-1] + "~"}, "its hash": {"Authorization", "Bearer " + HashSecret(made.Secret)},
		"its prefix": {"Authorization", "Bearer " + made.Prefix}, "two headers": {"Authorization", good, "Authorization", good}, "a huge one": {"Authorization", "Bearer " + strings.Repeat("a", 9000)},
	} {
		if got := status(header...); got != 401 {
			t.Errorf("%s: %d, want 401", name, got)
		}
	}
	w.now = w.now.Add(time.Minute)
	if got := status("Authorization", good); got != 401 {
		t.Errorf("an expired token: %d, want 401", got)
	}
	w.now = w.now.Add(-time.Second)
	operator := Operator()
	w.as = &operator
	if err := w.Client.RevokeToken(ctx, made.ID); err != nil {
		t.Fatal(err)
	}
	w.as = nil
	if got := status("Authorization", good); got != 401 {
		t.Errorf("a revoked token: %d, want 401", got)
	}
	if err := w.db.SetOwner(ctx, "codex", "", "", "test"); err != nil {
		t.Fatal(err)
	}
	secret, token := NewToken(Scopes(), w.now, time.Time{})
	token.Owner = "codex"
	if err := w.db.CreateToken(ctx, token, "test"); err != nil {
		t.Fatal(err)
	}
	if got := status("Authorization", "Bearer "+secret); got != 401 {
		t.Errorf("an owner's token opens the platform: %d", got)
	}
}

func TestATokenGivesNoScopeThatItLacks(t *testing.T) {
	w := newWorld(t)
	w.as = &Principal{Name: "tok_1", Scopes: []string{TokensWrite, EventsRead}}
	if _, err := w.Client.CreateToken(t.Context(), NewTokenRequest{Scopes: []string{EventsRead}}); err != nil {
		t.Error(err)
	}
	_, err := w.Client.CreateToken(t.Context(), NewTokenRequest{Scopes: []string{EventsRead, TenantsWrite}})
	wantCode(t, err, clawr.CodeScopeMissing, "operator")
}

func TestSecretsAreRandom(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		secret, token := NewToken(nil, time.Time{}, time.Time{})
		if seen[secret] || seen[token.ID] || token.SecretSHA256 != HashSecret(secret) || strings.Contains(token.SecretSHA256, secret) {
			t.Fatalf("%s %+v", secret, token)
		}
		seen[secret], seen[token.ID] = true, true
	}
}

// Who changes an owner or a token is in the audit log by the name of the token
// that they came with, as who deploys is.
func TestTheAuditLogNamesWhoChangedOwnersAndTokens(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	payTo := someone
	if _, err := w.Client.SetOwner(ctx, "codex", SetOwner{PayTo: &payTo}); err != nil {
		t.Fatal(err)
	}
	made, err := w.Client.CreateToken(ctx, NewTokenRequest{Scopes: []string{TenantsWrite, TokensWrite}})
	if err != nil {
		t.Fatal(err)
	}
	w.as = nil
	auth := []string{"Authorization", "Bearer " + made.Secret}
	if status, _, got := w.call("PUT", "/v1/owners/codex", `{"name":"Codex"}`, auth...); status != 200 {
		t.Fatal(status, got)
	}
	if status, _, got := w.call("DELETE", "/v1/tokens/"+made.ID, "", auth...); status != 200 {
		t.Fatal(status, got)
	}
	raw, err := sql.Open("sqlite", "file:"+w.raw+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	rows, err := raw.QueryContext(ctx, `SELECT actor, action, subject, detail FROM audit_log ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var who, action, subject, detail string
		if err := rows.Scan(&who, &action, &subject, &detail); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(detail, made.Secret) || strings.Contains(detail, made.Prefix) || strings.Contains(detail, HashSecret(made.Secret)) {
			t.Errorf("the log tells a secret: %s", detail)
		}
		got = append(got, who+" "+action+" "+subject)
	}
	want := []string{"operator owner codex", "operator token " + made.ID, made.ID + " owner codex", made.ID + " revoke " + made.ID}
	if !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
}
