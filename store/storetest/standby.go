package storetest

import (
	"errors"
	"net/url"
	"os"
	"testing"
)

// Pair is a server of one test, to which a standby may be added.
type Pair struct {
	URL     string // of the primary's database
	t       testing.TB
	standby *throwaway
}

// NewPair starts the primary, which syncs as a server should.
func NewPair(t testing.TB) *Pair {
	t.Helper()
	c := &throwaway{sync: true}
	u, err := c.start()
	t.Cleanup(c.stop)
	if errors.Is(err, errNoServer) && os.Getenv("CI") == "" {
		t.Skip("no PostgreSQL 15 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Pair{URL: u, t: t}
}

// Set changes a setting of the primary, at once.
func (p *Pair) Set(name, value string) {
	p.t.Helper()
	for _, s := range []string{"ALTER SYSTEM SET " + name + " = '" + value + "'", "SELECT pg_reload_conf()"} {
		if err := adminExec(p.URL, s); err != nil {
			p.t.Fatal(err)
		}
	}
}

// Follow copies the primary and starts a standby of it, under a name.
func (p *Pair) Follow(name string) {
	p.t.Helper()
	u, err := url.Parse(p.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	p.standby = &throwaway{sync: true}
	p.t.Cleanup(p.standby.stop)
	conn := "host=" + u.Hostname() + " port=" + u.Port() + " user=postgres application_name=" + name
	if _, err := p.standby.run("pg_basebackup", "-d", conn, "-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		p.t.Fatal(err)
	}
}

// Lose kills the standby.
func (p *Pair) Lose() { p.standby.stop() }
