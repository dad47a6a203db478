package storetest

import (
	"slices"

	"github.com/402claw/clawr"
)

// neededVersions: data stays for what is on sale, for the last versions, and
// for what a payment may still ask for; a removed tenant keeps no history.
func neededVersions(f *fixture) {
	f.answered() // of version 1, whose answer is kept
	slug := f.deploy().Slug
	for price := range clawr.Amount(5) {
		_, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: slug, Manifest: priced(price + 1)}, "ann")
		f.ok(err)
	}
	needed := func() (out []int64) {
		list, err := f.Needed(f.ctx(), 2)
		f.ok(err)
		for _, t := range list {
			out = append(out, t.Version)
		}
		return out
	}
	if got := needed(); !slices.Equal(got, []int64{6, 5, 1}) {
		f.Errorf("needed are %v, want the last two and the one that was paid for", got)
	}
	_, err := f.Rollback(f.ctx(), slug, 3, "ann")
	f.ok(err)
	if got := needed(); !slices.Equal(got, []int64{6, 5, 3, 1}) {
		f.Errorf("after a rollback to 3, needed are %v", got)
	}
	_, err = f.SetStatus(f.ctx(), slug, clawr.StatusRemoved, "ann")
	f.ok(err)
	if got := needed(); !slices.Equal(got, []int64{3, 1}) {
		f.Errorf("of a removed tenant, needed are %v", got)
	}
}
