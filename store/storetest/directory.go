package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/store"
	"github.com/google/go-cmp/cmp"
)

// refused fails the test unless err has this code, and a fix for people.
func (f *fixture) refused(err error, code clawr.Code) {
	f.Helper()
	if e, ok := errors.AsType[*clawr.Error](err); !ok || e.Code != code || e.Message == "" || e.Fix == "" {
		f.Errorf("got %v, want %s with a fix", err, code)
	}
}

func priced(price clawr.Amount) clawr.Manifest {
	m := manifest()
	m.Price = price
	return m
}

func deploysAreVersions(f *fixture) {
	first, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Hosts: []string{"acme.example.com"}, Manifest: priced(1)}, "ann")
	f.ok(err)
	if first.ID == "" || first.Version != 1 || first.Status != clawr.StatusActive || !slices.Equal(first.Hosts, []string{"acme.example.com"}) || first.Created.IsZero() {
		f.Errorf("first deploy: %+v", first)
	}
	second, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(2)}, "ann")
	f.ok(err)
	if second.ID != first.ID || second.Version != 2 || second.Price != 2 || len(second.Hosts) != 1 {
		f.Errorf("second deploy: %+v", second)
	}
	back, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(1)}, "ann")
	f.ok(err)
	if diff := cmp.Diff(first, back); diff != "" {
		f.Errorf("an identical manifest is not its old version (-old +again):\n%s", diff)
	}
	third, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(3)}, "ann")
	f.ok(err)
	if third.Version != 3 {
		f.Errorf("third manifest is version %d", third.Version)
	}
	list, err := f.Versions(f.ctx(), "acme")
	f.ok(err)
	if len(list) != 3 || list[0].Version != 3 || list[2].Price != 1 {
		f.Errorf("versions: %+v", list)
	}
	old, err := f.TenantVersion(f.ctx(), first.ID, 2)
	f.ok(err)
	if diff := cmp.Diff(second, old); diff != "" {
		f.Errorf("version 2 (-deployed +read):\n%s", diff)
	}
	all, err := f.Tenants(f.ctx())
	f.ok(err)
	if diff := cmp.Diff([]clawr.Tenant{third}, all); diff != "" {
		f.Errorf("tenants (-want +got):\n%s", diff)
	}

	_, err = f.Deploy(f.ctx(), clawr.Tenant{ID: "tnt_other", Slug: "acme", Manifest: priced(4)}, "ann")
	f.refused(err, clawr.CodeConflict)
	_, err = f.Deploy(f.ctx(), clawr.Tenant{ID: first.ID, Slug: "acme-2", Manifest: priced(4)}, "ann")
	f.refused(err, clawr.CodeConflict)
	_, err = f.Deploy(f.ctx(), clawr.Tenant{Slug: "Acme!", Manifest: priced(4)}, "ann")
	f.refused(err, clawr.CodeBadSlug)
	_, err = f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Hosts: []string{"https://x"}, Manifest: priced(4)}, "ann")
	f.refused(err, clawr.CodeBadHost)
	_, err = f.TenantVersion(f.ctx(), first.ID, 9)
	f.refused(err, clawr.CodeTenantNotFound)
	_, err = f.Versions(f.ctx(), "nobody")
	f.refused(err, clawr.CodeTenantNotFound)
	if all, _ := f.Tenants(f.ctx()); len(all) != 1 || all[0].Version != 3 {
		f.Errorf("refused deploys left %+v", all)
	}
}

func statusAndRollback(f *fixture) {
	for price := range clawr.Amount(3) {
		_, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(price + 1)}, "ann")
		f.ok(err)
	}
	back, err := f.Rollback(f.ctx(), "acme", 0, "ann")
	f.ok(err)
	if back.Version != 2 || back.Price != 2 {
		f.Errorf("rolled back to %+v", back)
	}
	back, err = f.Rollback(f.ctx(), "acme", 3, "ann")
	f.ok(err)
	if back.Version != 3 {
		f.Errorf("rolled forward to %d", back.Version)
	}
	back, err = f.Rollback(f.ctx(), "acme", 1, "ann")
	f.ok(err)
	_, err = f.Rollback(f.ctx(), "acme", 0, "ann")
	f.refused(err, clawr.CodeNotFound)
	_, err = f.Rollback(f.ctx(), "acme", 7, "ann")
	f.refused(err, clawr.CodeNotFound)
	_, err = f.Rollback(f.ctx(), "nobody", 0, "ann")
	f.refused(err, clawr.CodeTenantNotFound)

	paused, err := f.SetStatus(f.ctx(), "acme", clawr.StatusPaused, "ann")
	f.ok(err)
	if paused.Status != clawr.StatusPaused || paused.Version != back.Version {
		f.Errorf("paused: %+v", paused)
	}
	again, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(9)}, "ann")
	f.ok(err)
	if again.Status != clawr.StatusPaused {
		f.Error("a deploy resumed what was paused")
	}
	_, err = f.SetStatus(f.ctx(), "acme", clawr.StatusRemoved, "ann")
	f.ok(err)
	_, err = f.SetStatus(f.ctx(), "acme", clawr.StatusActive, "ann")
	f.refused(err, clawr.CodeTenantNotFound)
	_, err = f.Rollback(f.ctx(), "acme", 1, "ann")
	f.refused(err, clawr.CodeTenantNotFound)
	if all, _ := f.Tenants(f.ctx()); len(all) != 1 || all[0].Status != clawr.StatusRemoved {
		f.Errorf("a removed tenant is not listed: %+v", all)
	}
	revived, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: priced(10)}, "ann")
	f.ok(err)
	if revived.ID != paused.ID || revived.Status != clawr.StatusActive || revived.Version != 5 {
		f.Errorf("revived as %+v", revived)
	}
	_, err = f.SetStatus(f.ctx(), "acme", "sleeping", "ann")
	f.refused(err, clawr.CodeBadRequest)
	_, err = f.SetStatus(f.ctx(), "nobody", clawr.StatusPaused, "ann")
	f.refused(err, clawr.CodeTenantNotFound)
}

func hostsHaveOneTenant(f *fixture) {
	_, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "one", Hosts: []string{"b.example.com", "a.example.com"}, Manifest: manifest()}, "ann")
	f.ok(err)
	_, err = f.Deploy(f.ctx(), clawr.Tenant{Slug: "two", Hosts: []string{"c.example.com", "a.example.com"}, Manifest: manifest()}, "ann")
	f.refused(err, clawr.CodeHostTaken)
	if e, ok := errors.AsType[*clawr.Error](err); ok && !slices.ContainsFunc([]string{e.Message, e.Fix}, func(s string) bool { return len(s) > 3 && s[len(s)-3:] == "one" }) {
		f.Errorf("the error does not name the tenant: %v", err)
	}
	if all, _ := f.Tenants(f.ctx()); len(all) != 1 {
		f.Errorf("half of a refused deploy stayed: %+v", all)
	}
	one, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "one", Hosts: []string{"b.example.com"}, Manifest: manifest()}, "ann")
	f.ok(err)
	if !slices.Equal(one.Hosts, []string{"b.example.com"}) {
		f.Errorf("hosts %v", one.Hosts)
	}
	_, err = f.Deploy(f.ctx(), clawr.Tenant{Slug: "two", Hosts: []string{"a.example.com"}, Manifest: manifest()}, "ann")
	f.ok(err)
	_, err = f.SetStatus(f.ctx(), "two", clawr.StatusRemoved, "ann")
	f.ok(err)
	one, err = f.Deploy(f.ctx(), clawr.Tenant{Slug: "one", Hosts: []string{"a.example.com"}, Manifest: manifest()}, "ann")
	f.ok(err)
	if !slices.Equal(one.Hosts, []string{"a.example.com"}) {
		f.Errorf("a removed tenant kept its host from %v", one.Hosts)
	}
	none, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "one", Hosts: []string{}, Manifest: manifest()}, "ann")
	f.ok(err)
	if len(none.Hosts) != 0 {
		f.Errorf("hosts %v, want none", none.Hosts)
	}
}

// concurrentDeploys lets many want one host, and many write one tenant.
func concurrentDeploys(f *fixture) {
	const n = 16
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: fmt.Sprintf("t%d", i), Hosts: []string{"wanted.example.com"}, Manifest: manifest()}, "ann")
			if err == nil {
				won.Add(1)
			} else {
				f.refused(err, clawr.CodeHostTaken)
			}
		})
		wg.Go(func() {
			m := priced(clawr.Amount(i))
			m.PayTo = "" // nor may it be the payTo that keeps them apart
			if _, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "same", Manifest: m}, "ann"); err != nil {
				f.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		f.Errorf("%d of %d tenants got one host", won.Load(), n)
	}
	list, err := f.Versions(f.ctx(), "same")
	f.ok(err)
	if len(list) != n || list[0].Version != n {
		f.Errorf("%d versions, the last is %d, want %d without a gap", len(list), list[0].Version, n)
	}
}

func watchTells(f *fixture) {
	before, err := f.Revision(f.ctx())
	f.ok(err)
	ctx, cancel := context.WithCancel(f.ctx())
	told := make(chan struct{}, 100)
	ended := make(chan error)
	go func() { ended <- f.Watch(ctx, func() { told <- struct{}{} }) }()
	within := func(what string) {
		f.Helper()
		select {
		case <-told:
		case <-time.After(5 * time.Second):
			f.Fatalf("not told about %s", what)
		}
	}
	within("the beginning")
	start := time.Now()
	f.deploy()
	within("a deploy")
	if took := time.Since(start); took > time.Second {
		f.Logf("told after %v", took)
	}
	_, err = f.SetStatus(f.ctx(), "acme", clawr.StatusPaused, "ann")
	f.ok(err)
	within("a pause")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		f.Errorf("Watch ended with %v", err)
	}
	after, err := f.Revision(f.ctx())
	f.ok(err)
	if after <= before {
		f.Errorf("revision %d, then %d", before, after)
	}
}

func ownersAndTokens(f *fixture) {
	f.ok(f.SetOwner(f.ctx(), "bob", "Bob", "0x00000000000000000000000000000000000000BB", "ann"))
	f.ok(f.SetOwner(f.ctx(), "ann", "Ann", "", "ann"))
	f.ok(f.SetOwner(f.ctx(), "ann", "Ann B.", seller, "ann"))
	f.refused(f.SetOwner(f.ctx(), "eve", "Eve", "0x12", "ann"), clawr.CodeBadAddress)
	f.refused(f.SetOwner(f.ctx(), "", "Nobody", "", "ann"), clawr.CodeBadRequest)
	list, err := f.Owners(f.ctx())
	f.ok(err)
	if len(list) != 2 || list[0].Name != "Ann B." || list[0].PayTo != seller || list[1].PayTo != seller {
		f.Errorf("owners: %+v", list)
	}
	ann, err := f.Owner(f.ctx(), "ann")
	f.ok(err)
	if ann != list[0] {
		f.Errorf("owner %+v, listed as %+v", ann, list[0])
	}
	_, err = f.Owner(f.ctx(), "eve")
	f.refused(err, clawr.CodeNotFound)

	now := time.Now().UTC().Truncate(time.Microsecond)
	token := func(id string) store.Token {
		return store.Token{ID: id, Owner: "ann", Prefix: "clawr_" + id, SecretSHA256: hash(id), Scopes: []string{"events:read", "deploy"}, Created: now}
	}
	live, platform, late, gone := token("live"), token("platform"), token("late"), token("gone")
	platform.Owner, platform.Expires = "", now.Add(time.Hour)
	late.Expires = now.Add(-time.Hour)
	for _, t := range []store.Token{live, platform, late, gone} {
		f.ok(f.CreateToken(f.ctx(), t, "ann"))
	}
	f.refused(f.CreateToken(f.ctx(), live, "ann"), clawr.CodeConflict)
	stranger := token("stranger")
	stranger.Owner = "eve"
	f.refused(f.CreateToken(f.ctx(), stranger, "ann"), clawr.CodeNotFound)
	stranger.Scopes = []string{"two words"}
	f.refused(f.CreateToken(f.ctx(), stranger, "ann"), clawr.CodeBadRequest)
	f.ok(f.RevokeToken(f.ctx(), "gone", "ann"))
	f.ok(f.RevokeToken(f.ctx(), "gone", "ann"))
	f.refused(f.RevokeToken(f.ctx(), "stranger", "ann"), clawr.CodeNotFound)
	for _, want := range []store.Token{live, platform} {
		got, err := f.TokenByHash(f.ctx(), want.SecretSHA256)
		f.ok(err)
		if diff := cmp.Diff(want, got); diff != "" {
			f.Errorf("token (-created +found):\n%s", diff)
		}
	}
	for _, t := range []store.Token{late, gone, stranger} {
		_, err := f.TokenByHash(f.ctx(), t.SecretSHA256)
		f.refused(err, clawr.CodeTokenMissing)
	}
	tokens, err := f.Tokens(f.ctx())
	f.ok(err)
	if len(tokens) != 4 || tokens[0].ID != "gone" || tokens[0].Revoked.IsZero() {
		f.Errorf("tokens: %+v", tokens)
	}
}

// concurrentAudit lets many change tenants, owners and tokens at once. Each
// change is in the audit chain once, and what changes nothing is not in it.
func concurrentAudit(f *fixture) {
	const n = 12
	var wg sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("t%d", i)
		try := func(do func() error) {
			wg.Go(func() {
				if err := do(); err != nil {
					f.Errorf("%s: %v", name, err)
				}
			})
		}
		try(func() error {
			m := manifest()
			m.PayTo, m.X402 = "", false
			_, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: name, Manifest: m}, name)
			return err
		})
		try(func() error { return f.SetOwner(f.ctx(), name, name, "", name) })
		try(func() error { return f.SetOwner(f.ctx(), "same", "Same", seller, name) })
		try(func() error {
			if err := f.CreateToken(f.ctx(), store.Token{ID: name, Prefix: name, SecretSHA256: hash(name), Scopes: []string{"events:read"}}, name); err != nil {
				return err
			}
			for range 2 {
				try(func() error { return f.RevokeToken(f.ctx(), name, name) })
			}
			return nil
		})
	}
	wg.Wait()
	const want = n*4 + 1 // a deploy, an owner, a token and its end of each; and the owner that all set
	if rows, err := f.CheckAudit(f.ctx()); rows != want || err != nil {
		f.Errorf("%d rows are sound, %v; want %d", rows, err, want)
	}
	findings, err := f.Check(f.ctx())
	f.ok(err)
	i := slices.IndexFunc(findings, func(x store.Finding) bool { return x.Name == "I12" })
	if got := findings[i]; got.State != store.Sound || got.Detail != fmt.Sprintf("%d rows", want) {
		f.Errorf("the check says %+v", got)
	}
}

// secretsAreShared has many callers want the first secret at once.
func secretsAreShared(f *fixture) {
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			list, err := f.Secrets(f.ctx(), "quote")
			if err != nil || len(list) != 1 || len(list[0].Value) != 32 || !list[0].Retired.IsZero() {
				f.Errorf("first secret: %v, %v", list, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[string(list[0].Value)] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		f.Errorf("16 callers saw %d first secrets", len(seen))
	}
	f.ok(f.RotateSecret(f.ctx(), "quote", "operator"))
	f.ok(f.RotateSecret(f.ctx(), "quote", "operator"))
	list, err := f.Secrets(f.ctx(), "quote")
	f.ok(err)
	if len(list) != 3 || list[0].ID != "3" || !list[0].Retired.IsZero() || list[1].Retired.IsZero() || list[2].Retired.IsZero() || !seen[string(list[2].Value)] {
		f.Errorf("after two rotations: %+v", list)
	}
	other, err := f.Secrets(f.ctx(), "cursor")
	f.ok(err)
	if len(other) != 1 || seen[string(other[0].Value)] {
		f.Error("two names share a secret")
	}
	f.ok(f.RotateSecret(f.ctx(), "never asked for", "operator"))
	if list, err := f.Secrets(f.ctx(), "never asked for"); err != nil || len(list) != 1 {
		f.Errorf("rotating nothing: %v, %v", list, err)
	}
}
